"""ZeRO-1, tensor parallelism and fp16 make the updates of plain data parallelism; a run resumes
under any of them.
"""

import itertools
import json
import shutil

import pytest
from training_runs import (
    copy_of_run_as_it_was,
    evaluations_of,
    losses,
    metrics,
    steps_of,
    train_several,
    weights,
)

import bert.common.quiet_imports  # noqa: F401  before the frameworks

# isort: split
import torch
from colossalai.accelerator import set_accelerator
from safetensors.torch import load_file

from bert.training.model import build_model, load_config
from bert.training.optimization import Lamb, parameter_groups
from bert.training.plugins import parallelize

pytestmark = pytest.mark.slow

ROUNDING = {"rel": 2e-6, "weights_rel": 2e-6}  # seen: 1e-7 and 3e-7

TENSOR = ("--plugin=hybrid", "--tp_size=2")
KINDS = {
    "ddp": (), "zero1": ("--plugin=zero1",), "hybrid": TENSOR, "hybrid_unpad": (*TENSOR, "--unpad"),
    "hybrid_alone": ("--plugin=hybrid",),
    "ddp_adamw": ("--optimizer=adamw",), "zero1_adamw": ("--plugin=zero1", "--optimizer=adamw"),
    "hybrid_adamw": (*TENSOR, "--optimizer=adamw"),
    "checkpointed": ("--gradient_checkpointing",),
    "checkpointed_unpad": ("--gradient_checkpointing", "--unpad"),
}  # fmt: skip
KINDS |= {
    f"{kind}_{precision}": (*KINDS[kind], f"--precision={precision}")
    for precision in ("bf16", "fp16")
    for kind in ("ddp", "zero1", "hybrid")
}


@pytest.fixture(scope="module")
def runs(training_data, tmp_path_factory):
    """A folder with a run for each plugin and precision, from the same weights."""
    folder = tmp_path_factory.mktemp("parallel")
    common = (
        "--train_batch_size=32",
        "--num_train_steps=5",
        "--steps_per_update=2",
        "--eval_at_start=True",
    )
    two = {folder / kind: (*common, *more) for kind, more in KINDS.items()}
    train_several(training_data, two, processes=2, BERT_TEST_WAITS="1")
    four = {"four": TENSOR, "four_zero1": ("--plugin=zero1",)}
    train_several(
        training_data, {folder / kind: (*common, *more) for kind, more in four.items()}, processes=4
    )
    wrong = {"wrong_zero1": ("--plugin=zero1",), "wrong_hybrid": TENSOR}
    runs = {folder / kind: (*common, *more) for kind, more in wrong.items()}
    train_several(training_data, runs, processes=2, BERT_TEST_NORMS_OF_PARTS="1")
    return folder


def assert_same_run(folder, other, rel, weights_rel):
    assert losses(steps_of(other)) == [
        pytest.approx(row, rel=rel) for row in losses(steps_of(folder))
    ]
    for found, expected in zip(evaluations_of(other), evaluations_of(folder), strict=True):
        assert found == pytest.approx(expected, rel=rel)
    found, expected = (load_file(path / "model/model.safetensors") for path in (other, folder))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if "key.bias" in name:  # its true gradient is 0; what it becomes is round-off
            continue
        assert found[name].dtype == torch.float32 and found[name].shape == tensor.shape, name
        assert (found[name] - tensor).norm() <= weights_rel * max(tensor.norm(), 1e-3), name


@pytest.mark.parametrize(
    "kind", ["zero1", "hybrid", "hybrid_unpad", "hybrid_alone", "four", "four_zero1"]
)
def test_lamb_is_the_same_under_all_plugins(runs, kind):
    assert_same_run(runs / "ddp", runs / kind, **ROUNDING)


@pytest.mark.parametrize("kind", ["wrong_zero1", "wrong_hybrid"])
def test_norms_of_parts_are_noticed(runs, kind):
    """An optimizer that takes each rank's part of a tensor for the whole fails the comparison
    above.
    """
    with pytest.raises(AssertionError):
        assert_same_run(runs / "ddp", runs / kind, **ROUNDING)


@pytest.mark.parametrize("kind", ["zero1", "hybrid"])
def test_adamw_is_the_same_under_all_plugins(runs, kind):
    assert_same_run(runs / "ddp_adamw", runs / f"{kind}_adamw", **ROUNDING)


@pytest.mark.parametrize("kind", ["checkpointed", "checkpointed_unpad"])
def test_gradient_checkpointing_changes_nothing(runs, kind):
    assert_same_run(runs / "ddp", runs / kind, **ROUNDING)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["ddp", "zero1", "hybrid"])
def test_low_precision_is_close(runs, kind, precision):
    assert_same_run(
        runs / "ddp",
        runs / f"{kind}_{precision}",
        rel={"bf16": 5e-3, "fp16": 1e-3}[precision],
        weights_rel=0.02,
    )
    assert losses(steps_of(runs / f"{kind}_{precision}")) != losses(steps_of(runs / "ddp"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_the_gpu(runs, kind):
    """`--unpad` does once a micro-batch, for the number of its tokens."""
    expected = "nonzero nonzero\n" if kind.endswith("unpad") else "\n"
    assert (runs / kind / "waits.txt").read_text() == expected * 5


def peak_bytes(profile):
    """The most memory that was held at a time of what was allocated under a profiler."""
    changes = [
        event.nbytes()
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    return max(itertools.accumulate(changes))


def test_memory_that_is_told(process_group, training_data):
    set_accelerator("cpu")
    module = build_model(load_config(training_data / "config.json"))
    optimizer = Lamb(parameter_groups(module, 0.01))
    parallel = parallelize("ddp", module, optimizer, torch.device("cpu"), "fp32", tp_size=1)
    lasting, in_update = parallel.bytes_per_process
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with torch.profiler.profile(profile_memory=True) as profile:
        parallel.optimizer.step()
    moments = [tensor for state in optimizer.state.values() for tensor in (state["m"], state["v"])]
    assert lasting == sum(
        tensor.nbytes for tensor in [*parameters, *(p.grad for p in parameters), *moments]
    )
    assert in_update == pytest.approx(
        peak_bytes(profile) - sum(tensor.nbytes for tensor in moments), rel=0.1
    )


def test_compiled_layers_compute_the_same(training_data, tmp_path):
    one_layer = tmp_path / "config.json"
    one_layer.write_text(
        json.dumps(
            json.loads((training_data / "config.json").read_text()) | {"num_hidden_layers": 1}
        )
    )
    kinds = {"plain": (), "ddp": ("--compile",), "zero1": ("--compile", "--plugin=zero1")}
    common = (f"--bert_config_file={one_layer}", "--num_train_steps=3")
    train_several(
        training_data,
        {tmp_path / kind: (*common, *more) for kind, more in kinds.items()},
        processes=1,
    )
    for kind in ("ddp", "zero1"):
        assert_same_run(tmp_path / "plain", tmp_path / kind, rel=1e-5, weights_rel=1e-5)


# --------------------------------------------------------------------------------------------------
# A resumed run

SAVED, DONE = 3, 6


@pytest.fixture(scope="module")
def straight_runs(training_data, dropout_config, tmp_path_factory):
    """A folder with runs that were never stopped and kept all checkpoints, and {kind: its flags};
    dropout is on.
    """
    folder = tmp_path_factory.mktemp("straight")
    common = (
        f"--bert_config_file={dropout_config}",
        f"--num_train_steps={DONE}",
        f"--save_checkpoints_steps={SAVED}",
    )
    kinds = {
        "ddp": ("--optimizer=adamw",), "zero1": ("--plugin=zero1", "--precision=bf16"),
        "zero1_adamw": ("--plugin=zero1", "--precision=bf16", "--optimizer=adamw"),
        "hybrid": ("--plugin=hybrid", "--tp_size=2", "--precision=bf16", "--unpad"),
        "fp16": ("--precision=fp16",),
    }  # fmt: skip
    flags_of = {kind: (*common, *more, "--keep_checkpoint_max=0") for kind, more in kinds.items()}
    train_several(
        training_data, {folder / kind: more for kind, more in flags_of.items()}, processes=2
    )
    return folder, flags_of


@pytest.fixture(scope="module")
def continued_runs(training_data, straight_runs, tmp_path_factory):
    """A folder with the same runs, but stopped behind a checkpoint and gone on with, in other
    processes.
    """
    straight, flags_of = straight_runs
    folder = tmp_path_factory.mktemp("continued")
    runs = {
        copy_of_run_as_it_was(straight / kind, SAVED, folder / kind): more
        for kind, more in flags_of.items()
    }
    train_several(training_data, runs, processes=2)
    return folder


@pytest.mark.parametrize("kind", ["ddp", "zero1", "zero1_adamw", "hybrid", "fp16"])
def test_goes_on_to_the_same_losses(straight_runs, continued_runs, kind):
    straight = straight_runs[0] / kind
    assert len(steps_of(straight)) == DONE
    assert metrics(continued_runs / kind) == metrics(straight)
    assert weights(continued_runs / kind) == weights(straight)


def test_tensor_parallel_ranks_stay_alike_after_data_parallelism(
    training_data, straight_runs, tmp_path
):
    """The same processes, but now of one group: they must not go on with the random numbers that
    each had of its own.
    """
    straight, flags_of = straight_runs
    run = copy_of_run_as_it_was(straight / "ddp", SAVED, tmp_path / "run")
    train_several(
        training_data,
        {run: (*flags_of["ddp"], *TENSOR)},
        processes=2,
        BERT_TEST_REPLICAS="equal gradients",
    )


def test_tensor_parallel_ranks_stay_alike_whatever_their_rounding(
    training_data, dropout_config, tmp_path
):
    more = (
        f"--bert_config_file={dropout_config}",
        "--plugin=hybrid",
        "--tp_size=2",
        "--precision=bf16",
    )
    train_several(
        training_data, {tmp_path / "run": more}, processes=2, BERT_TEST_REPLICAS="rounded gradients"
    )


def test_goes_on_under_another_plugin(training_data, tmp_path):
    """DDP, then tensor parallelism, then ZeRO-1, two steps each: as under DDP alone."""
    common = (
        "--train_batch_size=32",
        "--num_train_steps=6",
        "--steps_per_update=2",
        "--save_checkpoints_steps=2",
    )
    train_several(
        training_data, {tmp_path / "straight": (*common, "--keep_checkpoint_max=0")}, processes=2
    )
    run = copy_of_run_as_it_was(tmp_path / "straight", 2, tmp_path / "run")
    stages = (("--plugin=hybrid", "--tp_size=2"), ("--plugin=zero1",))
    for step, more in zip((4, 6), stages):
        process = train_several(training_data, {run: (*common, *more)}, processes=2)
        assert f"after step {step - 2}" in process.stdout
        for later in run.glob(f"checkpoints/step-0000000[{step + 1}-9]"):
            shutil.rmtree(later)
    assert_same_run(tmp_path / "straight", run, **ROUNDING)
