"""Work on many files, each in a process of its own."""

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from bert.common.files import DataError
from bert.common.progress import ProgressLine, time_left

Result = TypeVar("Result")

WORKER_KILLED = "a worker process was killed (out of memory?); try a smaller --num_workers"


@contextlib.contextmanager
def process_pool(num_workers: int, num_jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Gives an executor of `num_workers` processes, no more than there are jobs.

    On Ctrl-C, SIGTERM or an error in the block, jobs that are running are finished and the others
    are not started. DataError if a process was killed.
    """
    workers = max(1, min(num_workers, num_jobs))
    with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise DataError(WORKER_KILLED) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_for_files(
    function: Callable[..., Result],
    jobs: Mapping[str, tuple],
    num_workers: int,
    speed: Callable[[list[Result], float], str],
) -> tuple[list[Result], list[str]]:
    """Calls function(*arguments) for each {file: arguments}, `num_workers` at a time, and shows a
    line of progress. Returns (results, problems): a file that fails stops no other.

    speed: (results so far, seconds) -> words for the line of progress.
    """
    results: list[Result] = []
    problems: list[str] = []
    started = time.monotonic()
    with ProgressLine() as progress, process_pool(num_workers, len(jobs)) as pool:
        futures = {pool.submit(function, *arguments): path for path, arguments in jobs.items()}
        for done, future in enumerate(as_completed(futures), start=1):
            try:
                results.append(future.result())
            except (DataError, OSError) as error:
                problems.append(str(error))
            except BrokenProcessPool:
                problems.append(f"{futures[future]}: {WORKER_KILLED}")
            seconds = time.monotonic() - started
            progress.show(
                f"{done:,} of {len(jobs):,} files, {speed(results, seconds)}, "
                f"{time_left(done, len(jobs), seconds)}"
            )
    return results, problems


def _start_worker():
    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Garbage of the parent stays: a destructor may wait for threads that a fork does not have, as
    # that of a DALI pipeline does for ever.
    gc.freeze()
