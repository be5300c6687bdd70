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
    """Ctrl-C, or SIGTERM or SIGUSR1, which a cluster sends before it takes a machine away: the run
    finishes its step, saves and stops.

    A scheduler and torchrun may both send the same signal: only a repetition after `PATIENCE`
    seconds ends the process at once.
    """

    PATIENCE = 10.0
    INTERVAL = 1.0  # seconds after which ranks ask each other again
    MAX_STEPS = 50  # and steps, as later ones may be slower

    def __init__(self) -> None:
        self._received: dict[int, float] = {}  # {signal: time in seconds}
        self._asked_at = time.monotonic()
        self._steps_since, self._steps_between = 0, 1  # steps since and between two questions
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, self._receive)

    def _receive(self, signum, frame):
        if not self._received and os.environ.get("RANK", "0") == "0":
            message = (
                f"{signal.Signals(signum).name}: the run finishes its step, saves and stops; the "
                f"same signal {self.PATIENCE:.0f} seconds later ends it at once\n"
            )
            os.write(2, message.encode())  # not print, within which the signal may have come
        first = self._received.setdefault(signum, time.monotonic())
        if time.monotonic() - first > self.PATIENCE:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def signal_on_any_rank(self) -> str | None:
        """Returns the name of a signal that any rank has received, or None.

        Every rank calls it after each step. They ask each other about once a second, all at the
        same steps, which are collective; at the others the answer is None.
        """
        self._steps_since += 1
        if self._steps_since < self._steps_between:
            return None
        seconds = (time.monotonic() - self._asked_at) / self._steps_since
        largest = torch.tensor([max(self._received, default=0), seconds], dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, control_group())
        signum, seconds = largest.tolist()
        self._asked_at, self._steps_since = time.monotonic(), 0
        # At most twice as many as the last time: single steps may have been fast by chance.
        most = min(2 * self._steps_between, self.MAX_STEPS)
        self._steps_between = min(most, max(1, int(self.INTERVAL / max(seconds, 1e-9))))
        return signal.Signals(int(signum)).name if signum else None
