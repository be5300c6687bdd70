"""Start of a process: its group, memory, the lock of the output folder, readable errors."""

import contextlib
import ctypes
import datetime
import fcntl
import glob
import os
import secrets
import socket
from collections.abc import Iterator

import colossalai
import torch
import torch.distributed as dist
from colossalai.accelerator import set_accelerator

from bert.common.files import DataError, locked
from bert.training.distributed import gathered, shared_errors


def join_processes(device: str, seed: int, timeout: float) -> torch.device:
    """Joins the process group that torchrun's environment describes; returns this process's device.

    device: "auto" (CUDA if there is any), "cpu" or "cuda". Without torchrun, it makes a group of
    one process. timeout: seconds after which a process that waits for the others, in this or a
    later group, ends with an error.
    """
    # ColossalAI's launch and its plugins take no timeout, so torch's defaults are changed.
    c10d = dist.distributed_c10d
    c10d.default_pg_timeout = datetime.timedelta(seconds=timeout)
    # Later than the wait on the CPU at each step's end, which gives a short message: NCCL's
    # watchdog prints many lines and ends the process itself.
    c10d.default_pg_nccl_timeout = datetime.timedelta(seconds=timeout + 60)
    if "RANK" not in os.environ:  # a plain `python3 train.py`
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if not use_cuda:
        set_accelerator("cpu")  # before launch, which would use a GPU if it finds one
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
        keep_freed_memory()
    colossalai.launch_from_torch(seed=seed, verbose=False)
    # The launch sets it: torch.compile would cut each layer into several graphs.
    torch._dynamo.config.optimize_ddp = False
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")


def keep_freed_memory() -> None:
    """Makes glibc keep large blocks, which each step would return and get back by page faults.

    The logits alone are 78 MB at 32 x 20 predictions: a step of configs/bert_tiny.json takes 0.23 s
    instead of 0.31 s.
    """
    m_trim_threshold, m_mmap_threshold, two_gib = -1, -3, 2**31 - 1  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, two_gib)


@contextlib.contextmanager
def lock_output_dir(folder: str) -> Iterator[None]:
    """Creates and locks the output folder; DataError if in use or not seen by all ranks."""
    with contextlib.ExitStack() as stack:
        with shared_errors():
            if dist.get_rank() == 0:
                lock = locked(os.path.join(folder, ".lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    stack.enter_context(lock)
                except BlockingIOError:
                    raise DataError(
                        f"{folder}: another run is using this folder; "
                        "wait until it ends, or choose another --output_dir"
                    ) from None
        _check_that_all_see(folder)
        yield


def _check_that_all_see(folder):
    """DataError if a rank has another folder of that name: its first checkpoint would fail."""
    # A new name, so that no machine has cached that it does not exist.
    token = gathered(secrets.token_hex(4))[0]
    mark = os.path.join(folder, f".seen-by-all-{token}")
    with shared_errors():
        if dist.get_rank() == 0:
            for left_over in glob.glob(os.path.join(glob.escape(folder), ".seen-by-all-*")):
                os.unlink(left_over)  # of a killed run: the folder is locked
            open(mark, "x").close()
    try:
        with shared_errors():
            if not os.path.exists(mark):
                raise DataError(
                    f"{folder}: on {socket.gethostname()} this is not the folder that rank 0 "
                    "writes to; choose an --output_dir that all machines share, as an absolute path"
                )
    finally:
        if dist.get_rank() == 0:
            os.unlink(mark)


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Turns torch's errors into a DataError: another rank is gone or hangs, or memory is short."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"the GPU's memory is too small: {str(error).splitlines()[0]}; raise "
            "--steps_per_update, or use --gradient_checkpointing or --plugin=zero1"
        ) from None
    except RuntimeError as error:  # gloo has no error class of its own
        text = str(error).lower()
        if "connectfullmesh" in text:
            raise DataError(
                "gloo found no way from this machine to another rank's, perhaps because the name "
                "of one means 127.0.x.1 in its /etc/hosts: set GLOO_SOCKET_IFNAME to the network "
                "interface that they share, such as eth0"
            ) from None
        timeouts = ["timed out waiting"]
        if isinstance(error, dist.DistError):
            timeouts += ["timeout", "timed out"]
        lost = ("closed by peer", "reset by peer", "broken pipe", "remote process exited")
        if any(words in text for words in timeouts):
            raise DataError(
                "waited longer than --collective_timeout for another rank, which hangs or is gone; "
                "look at the output of the other machines, then run the same command again"
            ) from None
        if any(words in text for words in lost):
            raise DataError("lost the connection to another rank, which has ended") from None
        raise
