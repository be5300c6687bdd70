"""A training process among others: joining the group, memory, and being asked to stop."""

import contextlib
import ctypes
import datetime
import fcntl
import os
import signal
import socket

import colossalai
import torch
import torch.distributed as dist
from colossalai.accelerator import set_accelerator

from bert import cli
from bert.files import DataError, locked


def join_processes(device, seed, timeout):
    """Joins the process group that torchrun's environment describes; returns this process's torch.device.

    device: "auto" (CUDA if there is any), "cpu" or "cuda". Without torchrun, a group of one is made.
    timeout: seconds after which a process that waits for the others, in this or a later group, ends with an error.
    """
    # ColossalAI's launch and its plugins take no timeout; what they do not say is looked up here.
    c10d = dist.distributed_c10d
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = datetime.timedelta(seconds=timeout)
    if "RANK" not in os.environ:  # a plain `python3 train.py`
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {
            "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        os.environ.update({name: str(value) for name, value in alone.items()})
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if not use_cuda:
        set_accelerator("cpu")  # before launch, which would take a GPU that it finds
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"])))
        keep_freed_memory()
    colossalai.launch_from_torch(seed=seed, verbose=False)
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")


def keep_freed_memory():
    """Has glibc keep large blocks instead of giving them back and faulting them in anew at every step.

    The logits alone are 78 MB at 32 x 20 predictions: a step of configs/bert_tiny.json takes 0.23 s instead of 0.31 s.
    """
    m_trim_threshold, m_mmap_threshold, two_gib = -1, -3, 2**31 - 1  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, two_gib)


def control_group():
    """Returns a gloo group of all processes, for what the CPU has to know without waiting for a GPU."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


@contextlib.contextmanager
def only_run_in(folder):
    """Has rank 0 hold the output folder meanwhile, which is made; DataError if another run holds it."""
    with contextlib.ExitStack() as held:
        if dist.get_rank() == 0:
            try:
                held.enter_context(locked(os.path.join(folder, ".lock"), fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                raise DataError(
                    f"{folder}: another run is at work there; wait for it, or choose another --output_dir"
                ) from None
        yield


@contextlib.contextmanager
def plain_errors():
    """Turns what torch raises when another rank is gone, hangs, or memory is short, into a DataError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"the GPU's memory is too small: {str(error).splitlines()[0]}; raise --steps_per_update, or use --unpad, "
            "--gradient_checkpointing or --plugin=zero1"
        ) from None
    except RuntimeError as error:
        if "Timed out waiting" in str(error):
            raise DataError(
                "waited longer than --collective_timeout for another rank, which hangs or is gone; look at the machines' other "
                "output, then give the same command again"
            ) from None
        if any(words in str(error) for words in ("Connection closed by peer", "Connection reset by peer", "Broken pipe")):
            # That rank has more to tell than this one, which is ended by torchrun meanwhile.
            cli.wait_to_be_ended()
            raise DataError("lost the connection to another rank, which has ended") from None
        raise


class StopRequest:
    """SIGTERM or SIGUSR1, as a cluster sends before it takes a machine away: the run stops after the step in work.

    A second signal of the same kind ends the process at once.
    """

    def __init__(self, group):
        """group: a gloo process group, in which the processes agree."""
        self._group, self._signal = group, 0
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, self._note)

    def _note(self, signum, frame):
        self._signal = signum
        signal.signal(signum, signal.SIG_DFL)

    def agreed(self):
        """Returns the name of the signal that any process has got, on every process at the same step, or None. Collective."""
        largest = torch.tensor(self._signal)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self._group)
        return signal.Signals(largest.item()).name if largest else None
