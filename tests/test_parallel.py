"""ZeRO-1, tensor parallelism and fp16 make the updates of plain data parallelism; a run goes on under any of them."""

import json
import os
import shutil

import pytest
import torch
from conftest import ROOT, assert_refused, run_script
from safetensors.torch import load_file
from test_train import copy_of_run_as_it_was, evaluations_of, flags, losses, metrics, steps_of, torchrun, training_data, weights  # noqa: F401, E501

ON_CPU = "tests/colossalai_on_cpu.py"


def train_several(data, runs, processes):
    """Trains several runs, {output folder: its flags}, one after the other in one set of processes."""
    arguments = []
    for output, more in runs.items():
        arguments += [*flags(data, output, *more), "--"]
    process = torchrun(processes, ON_CPU, *arguments)
    assert process.returncode == 0, process.stdout + process.stderr
    return process


@pytest.fixture(scope="module")
def runs(training_data, tmp_path_factory):  # noqa: F811
    """A folder with a run for each plugin and precision, from the same weights."""
    folder = tmp_path_factory.mktemp("parallel")
    common = ("--train_batch_size=32", "--num_train_steps=5", "--steps_per_update=2", "--eval_at_start=True")
    tensor = ("--plugin=hybrid", "--tp_size=2")
    kinds = {
        "ddp": (), "zero1": ("--plugin=zero1",), "hybrid": tensor, "hybrid_unpad": (*tensor, "--unpad"),
        "ddp_adamw": ("--optimizer=adamw",), "zero1_adamw": ("--plugin=zero1", "--optimizer=adamw"),
        "hybrid_adamw": (*tensor, "--optimizer=adamw"),
        "checkpointed": ("--gradient_checkpointing",), "checkpointed_unpad": ("--gradient_checkpointing", "--unpad"),
    }  # fmt: skip
    for precision in ("bf16", "fp16"):
        for kind in ("ddp", "zero1", "hybrid"):
            kinds[f"{kind}_{precision}"] = (*kinds[kind], f"--precision={precision}")
    train_several(training_data, {folder / kind: (*common, *more) for kind, more in kinds.items()}, processes=2)
    more = {folder / "four": (*common, *tensor), folder / "four_zero1": (*common, "--plugin=zero1")}
    train_several(training_data, more, processes=4)
    return folder


def assert_same_run(folder, other, rel, weights_rel):
    assert losses(steps_of(other)) == [pytest.approx(row, rel=rel) for row in losses(steps_of(folder))]
    for found, expected in zip(evaluations_of(other), evaluations_of(folder), strict=True):
        assert found == pytest.approx(expected, rel=rel)
    start = load_file(folder / "../start.safetensors") if (folder / "../start.safetensors").exists() else None
    assert start is None
    found, expected = (load_file(path / "model/model.safetensors") for path in (other, folder))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32 and found[name].shape == tensor.shape, name
        assert (found[name] - tensor).norm() <= weights_rel * max(tensor.norm(), 1e-3), name


@pytest.mark.parametrize("kind", ["zero1", "hybrid", "hybrid_unpad", "four", "four_zero1"])
def test_lamb_is_the_same_under_all_plugins(runs, kind):
    assert_same_run(runs / "ddp", runs / kind, rel=2e-6, weights_rel=1e-4)


@pytest.mark.parametrize("kind", ["zero1", "hybrid"])
def test_adamw_is_the_same_under_all_plugins(runs, kind):
    assert_same_run(runs / "ddp_adamw", runs / f"{kind}_adamw", rel=2e-6, weights_rel=1e-4)
