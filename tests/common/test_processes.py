"""bert/common/processes.py: a pool of processes whose end is clean."""

import concurrent.futures
import gc
import os
import signal
import time

import pytest

from bert.common.files import DataError
from bert.common.processes import process_pool


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt_oneself():
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def write(path):
    time.sleep(0.01)
    path.write_text("done")


def test_results_and_an_ignored_interrupt():
    with process_pool(4, 2) as pool:
        assert [pool.submit(interrupt_oneself).result() for _ in range(2)] == ["still here"] * 2


class Garbage:
    """In a cycle, so that only the garbage collector deletes it; its end leaves a file."""

    def __init__(self, path):
        self.itself, self.path = self, path

    def __del__(self):
        (self.path / str(os.getpid())).touch()


def test_garbage_of_the_parent_is_not_collected_in_a_worker(tmp_path):
    """The destructor of a DALI pipeline waited for ever for threads that the fork did not have."""
    gc.disable()
    try:
        Garbage(tmp_path)
        with process_pool(1, 1) as pool:
            pool.submit(gc.collect).result()
        assert os.listdir(tmp_path) == []
        gc.collect()
        assert os.listdir(tmp_path) == [str(os.getpid())]
    finally:
        gc.enable()


def test_a_killed_process_is_reported():
    with pytest.raises(DataError, match="was killed"), process_pool(1, 2) as pool:
        pool.submit(kill_oneself).result()


def test_no_jobs():
    with process_pool(2, 0):
        pass


def test_an_error_leaves_out_what_is_not_started(tmp_path):
    paths = [tmp_path / str(number) for number in range(10_000)]  # 100 seconds of work
    with pytest.raises(KeyboardInterrupt), process_pool(1, len(paths)) as pool:
        jobs = [pool.submit(write, path) for path in paths]
        concurrent.futures.wait(jobs[:1])
        raise KeyboardInterrupt
    assert paths[0].read_text() == "done" and not paths[-1].exists()
