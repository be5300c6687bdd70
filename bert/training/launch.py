"""A training process among others: joining the group, memory, the folder that is its run's own,
what others' ends look like.
"""

import contextlib
import ctypes
import datetime
import fcntl
import os
import secrets
import socket

import colossalai
import torch
import torch.distributed as dist
from colossalai.accelerator import set_accelerator

from bert.common.files import DataError, locked
from bert.training.distributed import gathered, shared_errors


def join_processes(device, seed, timeout):
    """Joins the process group that torchrun's environment describes; returns this process's
    torch.device.

    device: "auto" (CUDA if there is any), "cpu" or "cuda". Without torchrun, a group of one is
    made.
    timeout: seconds after which a process that waits for the others, in this or a later group, ends
    with an error.
    """
    # ColossalAI's launch and its plugins take no timeout; what they do not say is looked up here.
    c10d = dist.distributed_c10d
    c10d.default_pg_timeout = datetime.timedelta(seconds=timeout)
    # NCCL's watchdog has many words for it and ends the process itself; the wait on the CPU at each
    # step's end is to be first.
    c10d.default_pg_nccl_timeout = datetime.timedelta(seconds=timeout + 60)
    if "RANK" not in os.environ:  # a plain `python3 train.py`
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {
            "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        os.environ.update({name: str(value) for name, value in alone.items()})
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if not use_cuda:
        set_accelerator("cpu")  # before launch, which would take a GPU that it finds
        torch.set_num_threads(
            max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"]))
        )
        keep_freed_memory()
    colossalai.launch_from_torch(seed=seed, verbose=False)
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")


def keep_freed_memory():
    """Has glibc keep large blocks instead of giving them back and faulting them in anew at every
    step.

    The logits alone are 78 MB at 32 x 20 predictions: a step of configs/bert_tiny.json takes 0.23 s
    instead of 0.31 s.
    """
    m_trim_threshold, m_mmap_threshold, two_gib = -1, -3, 2**31 - 1  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, two_gib)


@contextlib.contextmanager
def lock_output_dir(folder):
    """Has rank 0 hold the output folder meanwhile, which is made; DataError if another run holds it
    or a rank does not see it.
    """
    with contextlib.ExitStack() as held:
        with shared_errors():
            if dist.get_rank() == 0:
                try:
                    held.enter_context(
                        locked(os.path.join(folder, ".lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    )
                except BlockingIOError:
                    raise DataError(
                        f"{folder}: another run is at work there; "
                        "wait for it, or choose another --output_dir"
                    ) from None
        _check_that_all_see(folder)
        yield


def _check_that_all_see(folder):
    """DataError if a rank has another folder of that name: else the first checkpoint would fail,
    long after the start.
    """
    # A new name, of which no machine has cached that it is not there.
    token = gathered(secrets.token_hex(4))[0]
    mark = os.path.join(folder, f".seen-by-all-{token}")
    with shared_errors():
        if dist.get_rank() == 0:
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
def readable_errors():
    """Turns what torch raises when another rank is gone, hangs, or memory is short, into a
    DataError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"the GPU's memory is too small: {str(error).splitlines()[0]}; raise "
            "--steps_per_update, or use --unpad, --gradient_checkpointing or --plugin=zero1"
        ) from None
    except RuntimeError as error:  # gloo has no class of its own
        words = str(error).lower()
        if "timed out waiting" in words or (
            isinstance(error, dist.DistError) and ("timeout" in words or "timed out" in words)
        ):
            raise DataError(
                "waited longer than --collective_timeout for another rank, which hangs or is gone; "
                "look at the machines' other output, then give the same command again"
            ) from None
        if any(
            sign in words
            for sign in ("closed by peer", "reset by peer", "broken pipe", "remote process exited")
        ):
            raise DataError("lost the connection to another rank, which has ended") from None
        raise
