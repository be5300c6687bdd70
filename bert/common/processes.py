"""Work on many files, each in a process of its own."""

import concurrent.futures
import contextlib
import signal
from concurrent.futures.process import BrokenProcessPool

from bert.common.files import DataError


@contextlib.contextmanager
def process_pool(num_workers, num_jobs):
    """Gives an executor of `num_workers` processes, no more than there are jobs.

    On Ctrl-C, SIGTERM or an error in the block the jobs in work are finished, and the others not
    begun. DataError if a process was killed.
    """
    with concurrent.futures.ProcessPoolExecutor(
        min(num_workers, num_jobs), initializer=_ignore_interrupt
    ) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise DataError(
                "a process that read the files was killed (out of memory?); "
                "try a smaller --num_workers"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _ignore_interrupt():
    """Ctrl-C reaches every process of the terminal; the parent alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
