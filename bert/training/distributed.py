"""What all ranks agree on, without waiting for a GPU: an error of one is an error of all, and so is
a request to stop.
"""

import contextlib
import functools
import os
import signal
import socket
import time

import torch
import torch.distributed as dist

from bert.common.files import DataError


@functools.cache
def control_group():
    """Returns the gloo group of all processes."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def gathered(value):
    """Returns what each rank gave, in the order of the ranks. Collective."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, control_group())
    return values


@contextlib.contextmanager
def shared_errors():
    """Raises DataError on every rank where the block raised one, or an OSError, on any: none waits
    for one that has ended.

    Collective: a rank that has nothing to do enters the block too. A collective inside it must not
    come after what may fail.
    """
    own = None
    try:
        yield
    except (DataError, OSError) as error:
        own = str(error)
    found = gathered(own)
    ranks = {
        error: [rank for rank, other in enumerate(found) if other == error]
        for error in found
        if error is not None
    }
    if ranks:
        told = (
            error if of == [0] else f"rank {', '.join(map(str, of))}: {error}"
            for error, of in ranks.items()
        )
        raise DataError("; ".join(told))


def check_alike(values):
    """DataError on every rank unless `values`, {what: value}, are the same on all of them.

    Collective.
    """
    found = gathered((socket.gethostname(), values))
    _, expected = found[0]
    differences = [
        f"{what}: {others[what]} on rank {rank} ({host}), {expected[what]} on rank 0"
        for rank, (host, others) in enumerate(found)
        for what in expected
        if others[what] != expected[what]
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise DataError(
            f"the processes of a run must be given the same: {'; '.join(differences[:5])}{more}"
        )


class StopRequest:
    """SIGTERM or SIGUSR1, as a cluster sends before it takes a machine away: the run stops after
    the step in work.

    A scheduler and torchrun may both pass on the same one: only a repetition after `PATIENCE`
    seconds ends the process at once.
    """

    PATIENCE = 10.0

    def __init__(self):
        self._noted = {}  # signal: time
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, self._note)

    def _note(self, signum, frame):
        first = self._noted.setdefault(signum, time.monotonic())
        if time.monotonic() - first > self.PATIENCE:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def agreed(self):
        """Returns the name of the signal that any process has got, on every process at the same
        step, or None. Collective.
        """
        largest = torch.tensor(max(self._noted, default=0))
        dist.all_reduce(largest, dist.ReduceOp.MAX, control_group())
        return signal.Signals(largest.item()).name if largest else None
