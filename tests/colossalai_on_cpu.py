"""For tests only: lets ColossalAI's ZeRO and tensor parallelism, which ask for CUDA, run on the CPU
over gloo.

torchrun tests/colossalai_on_cpu.py <flags of train.py> -- <flags of train.py> ...

Makes one run after the other.
"""

import contextlib
import functools
import itertools
import os
import sys
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bert.common import quiet_imports  # noqa: F401  before the frameworks

# isort: split
import torch
import torch.distributed as dist
from colossalai.accelerator import CpuAccelerator, set_accelerator
from colossalai.utils import set_seed
from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import bert.training.launch
import train
from bert.common import cli
from bert.training import flag_checks, loop
from bert.training.optimization import AdamWeightDecay
from bert.training.plugins import SlicePart
from bert.training.run import Run

waits = []  # for what the step in work would have waited for a GPU


class FinishedStream:
    """A CPU has finished its work when the call returns."""

    def wait_stream(self, other):
        pass

    def synchronize(self):
        waits.append("Stream.synchronize")


class SynchronousCpu(CpuAccelerator):
    def device_count(self):
        return 1

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def synchronize(self, device=None):
        waits.append("synchronize")

    def Stream(self, *args, **options):
        return FinishedStream()

    def current_stream(self, device=None):
        return FinishedStream()

    def stream(self, stream):
        return contextlib.nullcontext()


def install():
    bert.training.launch.set_accelerator = lambda name: set_accelerator(SynchronousCpu())
    flag_checks.CPU_PLUGINS |= {"zero1", "hybrid"}
    LowLevelZeroOptimizer._sanity_checks = lambda self: None  # "device is required"
    dist.Backend.HCCL = "hccl"
    dist.is_hccl_available = lambda: False


def main(runs):
    """Trains once for each list of flags, in one process group, as joining takes longer than these
    runs.

    Flags of MODES among them are not train.py's: they change what a run does.
    """
    install()
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda group=None: None
    for flags in runs:
        with contextlib.ExitStack() as changes:
            for mode in [flag for flag in flags if flag in MODES]:
                flags.remove(mode)
                for owner, name, replacement in MODES[mode]():
                    changes.enter_context(mock.patch.object(owner, name, replacement))
            train.main(flags)
        loop.join_processes = join_again
    leave()


def take_norms_of_parts():
    """The mistake of an optimizer that does not know it has parts."""
    yield AdamWeightDecay, "split_over", lambda self, group, parameters: None


def check_replicas():
    yield Run, "finish", assert_replicas_are_alike


def leave_gradients_as_they_are():
    """No averaging, behind which it would not be seen that ranks compute different things."""
    yield AdamWeightDecay, "average_over", lambda self, group, parameters: None


def round_gradients_by_rank():
    """What kernels do that add in no fixed order."""
    step = AdamWeightDecay.step

    def round_and_step(self, closure=None):
        for weight in itertools.chain.from_iterable(group["params"] for group in self.param_groups):
            weight.grad.mul_(1 + 1e-6 * dist.get_rank())
        return step(self, closure)

    yield AdamWeightDecay, "step", round_and_step


def assert_replicas_are_alike(run):
    """In place of a run's end: what tensor-parallel ranks hold alike has stayed alike."""
    whole = [part for part in run.parallel._parts if not isinstance(part, SlicePart)]
    assert len(whole) > 10
    for part in whole:
        masters = [torch.empty_like(part.master) for _ in range(dist.get_world_size())]
        dist.all_gather(masters, part.master.detach())
        assert all(torch.equal(masters[0], other) for other in masters), part.name


class WaitRecorder(TorchDispatchMode):
    """Notes calls whose result has to come to the CPU, though everything is on it here."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        has_mask = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if has_mask or name in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "equal",
            "unique2",
        ):
            waits.append(name)
        return function(*arguments, **(options or {}))


def note_steps_that_wait():
    """Has each run leave waits.txt: a line for each step, with what it would have waited for."""
    begin_update, record, recorder = Run.begin_update, Run.record, WaitRecorder()

    def begin_and_watch(self, rate):
        begin_update(self, rate)
        waits.clear()
        recorder.__enter__()

    def note_and_record(self, *results):
        recorder.__exit__(None, None, None)
        if dist.get_rank() == 0:
            with open(os.path.join(self.flags.output_dir, "waits.txt"), "a") as file:
                print(*waits, file=file)
        record(self, *results)

    yield Run, "begin_update", begin_and_watch
    yield Run, "record", note_and_record


def count_graphs():
    """Has each run leave graphs.txt: how many graphs were compiled when its clock started, and at
    its end. Torch runs the graphs as they are: inductor's C++ compiler would take minutes.
    tests/training/test_model.py compares what inductor makes with MLPerf's recording.
    """
    torch._dynamo.reset()
    counters.clear()

    def and_note(method):
        def call_and_note(self, *arguments):
            method(self, *arguments)
            if dist.get_rank() == 0:
                with open(os.path.join(self.flags.output_dir, "graphs.txt"), "a") as file:
                    print(counters["stats"]["unique_graphs"], file=file)

        return call_and_note

    yield torch, "compile", functools.partial(torch.compile, backend="aot_eager")
    yield Run, "_open_logs", and_note(Run._open_logs)  # which logs the start
    yield Run, "finish", and_note(Run.finish)


# {flag: what yields (class, name, what stands there instead)}
MODES = {
    "--test_norms_of_parts": take_norms_of_parts,
    "--test_replicas": check_replicas,
    "--test_equal_gradients": leave_gradients_as_they_are,
    "--test_rounded_gradients": round_gradients_by_rank,
    "--test_waits": note_steps_that_wait,
    "--test_graphs": count_graphs,
}


def join_again(device, seed, timeout):
    set_seed(seed)
    return torch.device("cpu")


if __name__ == "__main__":
    groups = itertools.groupby(sys.argv[1:], key=lambda flag: flag == "--")
    runs = [list(flags) for is_separator, flags in groups if not is_separator]
    cli.run(lambda: main(runs))
