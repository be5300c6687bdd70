"""Agreement between ranks, without waiting for a GPU: on values, on errors, on stopping."""

import contextlib
import functools
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from bert.common.files import DataError


@functools.cache
def control_group() -> dist.ProcessGroup | None:
    """Returns the gloo group of all processes."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def gathered(value: Any) -> list[Any]:
    """Returns the value of each rank, in the order of the ranks. Collective."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, control_group())
    return values


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """DataError on every rank if the block raised DataError or OSError on any: none waits for it.

    Collective: a rank that has nothing to do enters the block too. Inside it, a collective call
    must come before anything that may fail.
    """
    own = None
    try:
        yield
    except (DataError, OSError) as error:
        own = str(error)
    ranks_of: dict[str, list[int]] = {}
    for rank, message in enumerate(gathered(own)):
        if message is not None:
            ranks_of.setdefault(message, []).append(rank)
    if ranks_of:
        raise DataError(
            "; ".join(
                message if ranks == [0] else f"rank {', '.join(map(str, ranks))}: {message}"
                for message, ranks in ranks_of.items()
            )
        )


def check_alike(values: dict[str, Any]) -> None:
    """DataError on every rank unless `values` are the same on all of them. Collective."""
    found = gathered((socket.gethostname(), values))
    _, expected = found[0]
    differences = [
        f"{name}: {others[name]} on rank {rank} ({host}), {expected[name]} on rank 0"
        for rank, (host, others) in enumerate(found)
        for name in expected
        if others[name] != expected[name]
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise DataError(
            f"all processes of a run need the same flags and data: "
            f"{'; '.join(differences[:5])}{more}"
        )


class StopRequest:
    """SIGTERM or SIGUSR1, sent before a cluster takes a machine away: stops after this step.

    A scheduler and torchrun may both send the same signal: only a repetition after `PATIENCE`
    seconds ends the process at once.
    """

    PATIENCE = 10.0

    def __init__(self):
        self._received: dict[int, float] = {}  # {signal: time in seconds}
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, self._receive)

    def _receive(self, signum, frame):
        first = self._received.setdefault(signum, time.monotonic())
        if time.monotonic() - first > self.PATIENCE:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def signal_on_any_rank(self) -> str | None:
        """Returns the name of a signal that any rank has received, or None. Collective."""
        largest = torch.tensor(max(self._received, default=0))
        dist.all_reduce(largest, dist.ReduceOp.MAX, control_group())
        return signal.Signals(int(largest)).name if largest else None
