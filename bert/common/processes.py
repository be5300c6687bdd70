"""Work on many files, each in a process of its own."""

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from bert.common.files import DataError

WORKER_KILLED = "a worker process was killed (out of memory?); try a smaller --num_workers"


@contextlib.contextmanager
def process_pool(num_workers: int, num_jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Gives an executor of `num_workers` processes, no more than there are jobs.

    On Ctrl-C, SIGTERM or an error in the block, jobs that are running are finished and the others
    are not started. DataError if a process was killed.
    """
    workers = max(1, min(num_workers, num_jobs))
    with ProcessPoolExecutor(workers, initializer=_ignore_interrupt) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise DataError(WORKER_KILLED) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _ignore_interrupt():
    """Ctrl-C reaches every process of the terminal; the parent alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
