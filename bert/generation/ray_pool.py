"""Ray as a pool of processes, on this machine or on a cluster; Ray is imported when it is started,
and nowhere else.
"""

import collections
import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from bert.common.files import DataError

TRIES = 3  # of an item whose process is killed, or whose machine goes away
_OBJECT_STORE_BYTES = 80 << 20  # a little more than the least that Ray takes; results are small
_ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


class Outcome(NamedTuple):
    item: Any
    result: Any  # None after an error
    error: str | None


def address_problems(address: str) -> list[str]:
    """Returns the reasons why a cluster cannot be used, a list of messages; Ray itself would try
    for minutes and say nothing.
    """
    if address == "auto":
        return []
    host, _, port = address.rpartition(":")
    if not host or "://" in host or not port.isdigit():
        return [f"{address}: expected host:port, or auto"]
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        return [
            f"{address}: nothing answers there ({error}); "
            f"start a cluster with: ray start --head --port={port}"
        ]
    return []


@contextlib.contextmanager
def started(address: str | None, num_workers: int | None) -> Iterator[int]:
    """Starts Ray on this machine (`address` None) or connects to the cluster at `address`; gives
    the number of workers.

    num_workers: at the same time, over the whole cluster; None: all cores. When the block ends,
    however it does, all that was started here ends too, and its files are removed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would send statistics home
    # Else Ray warns of its own next version.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options, folder = {"address": address}, None
    if address is None:
        # Sockets lie in this folder, and their paths may have 107 bytes only.
        folder = tempfile.mkdtemp(prefix=f"bert-ray-{os.getpid()}-", dir="/tmp")
        options = _alone(folder, num_workers or len(os.sched_getaffinity(0)))
    import ray

    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
        # Ray has put its own in the place of bert/common/cli.py's.
        signal.signal(signal.SIGTERM, on_term)
        yield num_workers or int(ray.cluster_resources()["CPU"])
    finally:
        # A second Ctrl-C would leave processes behind.
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGINT, on_interrupt)


def _alone(folder, num_cpus):
    """Returns the options of a Ray that nobody but this process can reach."""
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes Ray stay on 127.0.0.1, on Linux too
        "RAY_AUTH_MODE": "token",
        # For this run alone; else Ray would write one into the home folder.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Large arrays go back to the system; else a process is 34 MB larger after a part of 27 MB.
        "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
        "PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")])),
    }
    return {
        "address": "local",
        "num_cpus": num_cpus,
        "num_gpus": 0,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": folder,
    }


def run(
    function: Callable, items: Iterable, *arguments: Any, num_at_a_time: int
) -> Iterator[Outcome | None]:
    """Calls function(item, *arguments) for every item, `num_at_a_time` at the same time, one to a
    core.

    Yields an `Outcome` for each item when it is done, and None twice a second while there is none.
    """
    import ray

    remote = ray.remote(num_cpus=1, max_retries=TRIES - 1)(function)
    waiting = collections.deque(items)
    running: dict[Any, Any] = {}  # job -> item
    while waiting or running:
        while waiting and len(running) < num_at_a_time:
            item = waiting.popleft()
            running[remote.remote(item, *arguments)] = item
        ready, _ = ray.wait(list(running), timeout=0.5)
        for job in ready:
            yield _outcome(running.pop(job), job)
        if not ready:
            yield None


def _outcome(item, job):
    import ray

    try:
        return Outcome(item, ray.get(job), None)
    except ray.exceptions.RayTaskError as error:
        is_in_words = isinstance(error.cause, (DataError, OSError))
        kind = "" if is_in_words else f"{type(error.cause).__name__}: "
        return Outcome(item, None, f"{kind}{error.cause}")
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        killed = f"its process was killed {TRIES} times (out of memory?)"
        return Outcome(item, None, f"{killed}: {type(error).__name__}: {reason}")
