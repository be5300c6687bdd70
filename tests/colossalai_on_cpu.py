"""For tests only: lets ColossalAI's ZeRO and tensor parallelism, which ask for CUDA, run on the CPU over gloo.

torchrun tests/colossalai_on_cpu.py ...    is train.py with the flags that follow
"""

import contextlib
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bert import quiet_imports  # noqa: E402, F401  before the frameworks

# isort: split
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from colossalai.accelerator import CpuAccelerator, set_accelerator  # noqa: E402
from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer  # noqa: E402

import bert.launch  # noqa: E402


class FinishedStream:
    """A CPU has done what it was told when the call is over."""

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class SynchronousCpu(CpuAccelerator):
    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def synchronize(self, device=None):
        pass

    def Stream(self, *args, **options):
        return FinishedStream()

    def current_stream(self, device=None):
        return FinishedStream()

    def stream(self, stream):
        return contextlib.nullcontext()


def install():
    bert.launch.set_accelerator = lambda name: set_accelerator(SynchronousCpu())
    LowLevelZeroOptimizer._sanity_checks = lambda self: None  # "device is required"
    dist.Backend.HCCL = "hccl"
    dist.is_hccl_available = lambda: False


if __name__ == "__main__":
    import train
    from bert import cli, run_checks

    install()
    run_checks.CPU_PLUGINS |= {"zero1", "hybrid"}
    cli.run(train.main)
