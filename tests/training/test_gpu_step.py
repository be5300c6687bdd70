"""benchmarks/gpu_step.py on the CPU, and that it needs torch and transformers only."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from bert.common.files import DataError
from bert.training.model import load_config

# What setup.sh installs and a bare GPU machine lacks.
ABSENT = (
    "colossalai", "nvidia.dali", "numba", "tensorflow", "tensorboard", "matplotlib", "ray", "nltk",
    "google_crc32c", "mlperf_logging", "hypothesis", "psutil", "triton",
)  # fmt: skip


def run_without_packages(what, *arguments):
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT})); {what}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )


SCRIPT = "runpy.run_path('benchmarks/gpu_step.py', run_name='__main__')"
TESTS = "runpy.run_module('pytest', run_name='__main__')"


@pytest.fixture
def gpu_step():
    spec = importlib.util.spec_from_file_location("gpu_step", ROOT / "benchmarks/gpu_step.py")
    module = sys.modules["gpu_step"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_step"]


@pytest.fixture
def tiny_config():
    config = load_config(ROOT / "configs/bert_tiny.json")
    config.vocab_size = 2000
    return config


@pytest.mark.slow
def test_runs_without_other_packages(tmp_path):
    report = tmp_path / "report.json"
    process = run_without_packages(
        SCRIPT, "--device=cpu", "--sizes=tiny", "--batch_size=2", "--seq_length=32", "--steps=1",
        "--compile=False", f"--output={report}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    content = json.loads(report.read_text())
    assert content["versions"]["torch"] and content["versions"]["transformers"]
    programs = ["Hugging Face", "dense", "unpadded"]
    assert [result["program"] for result in content["results"]] == programs
    for result in content["results"]:
        parts = (result[f"{part}_ms"] for part in ("forward", "backward", "optimizer"))
        assert 0 < sum(parts) <= result["step_ms"] * 1.01
        assert result["attention_kernels"]
        assert f"| tiny | {result['program']} | {result['step_ms']:.1f} |" in process.stdout
    assert {result["dtype"] for result in content["check"]} == {"torch.float32", "torch.bfloat16"}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu():
    process = run_without_packages(SCRIPT)
    assert process.returncode == 1
    assert process.stderr.startswith("error: --device=cuda: torch finds no GPU")


def test_examples_are_as_long_as_mlperfs(gpu_step, tiny_config):
    batches = gpu_step.make_batches(4, 48, 512, tiny_config, seed=1)
    lengths = torch.cat([batch["input_mask"].sum(1) for batch in batches]).float()
    assert 253 < lengths.mean() < 255 and lengths.max() == 512
    for batch in batches:
        assert batch["input_ids"].shape == (48, 512)
        weights = batch["masked_lm_weights"]
        assert weights.shape == (48, 76) and weights.sum(1).min() >= 1 and weights.sum(1).max() > 75
        is_masked = weights.bool()
        for row in range(48):
            positions = batch["masked_lm_positions"][row][is_masked[row]]
            labels = batch["labels"][row]
            assert torch.equal((labels != -100).nonzero().squeeze(1), positions)
            assert torch.equal(labels[positions], batch["masked_lm_ids"][row][is_masked[row]])
            assert (batch["input_ids"][row][positions] == 103).all()


@pytest.mark.parametrize(
    "what, change",
    [
        ("loss", lambda loss: loss * 1.1),
        ("gradients", lambda loss: loss + 0.5 * (loss - loss.detach())),
    ],
    ids=["loss", "gradients"],
)
def test_wrong_steps_are_noticed(gpu_step, tiny_config, monkeypatch, what, change):
    (batch,) = gpu_step.make_batches(1, 2, 32, tiny_config, seed=0)
    real = gpu_step.hugging_face_loss
    monkeypatch.setattr(gpu_step, "hugging_face_loss", lambda *arguments: change(real(*arguments)))
    with pytest.raises(DataError, match=f"^Hugging Face, torch.float32: {what} differ"):
        gpu_step.check(tiny_config, ["Hugging Face"], batch, torch.device("cpu"))


def test_a_wrong_update_is_noticed(gpu_step, tiny_config, monkeypatch):
    (batch,) = gpu_step.make_batches(1, 2, 32, tiny_config, seed=0)
    real = gpu_step.build

    def build_with_another_rate(name, *arguments):
        program = real(name, *arguments)
        if name == "unpadded":
            program.optimizer.param_groups[1]["lr"] *= 1.01
        return program

    monkeypatch.setattr(gpu_step, "build", build_with_another_rate)
    with pytest.raises(DataError, match=r"^unpadded, torch.float32: update differ"):
        gpu_step.check(tiny_config, ["unpadded"], batch, torch.device("cpu"))


@pytest.mark.slow
def test_tests_for_a_gpu_say_which_package_they_lack():
    process = run_without_packages(
        TESTS, "--disable-plugin-autoload", "-o", "addopts=", "-rs", "tests/gpu"
    )
    assert process.returncode == 0, process.stdout + process.stderr
    reasons = dict(re.findall(r"tests/gpu/(\w+)\.py:\d+: (.*)", process.stdout))
    assert "could not import 'nvidia.dali'" in reasons["test_dataloader_gpu"]
    assert "could not import 'colossalai'" in reasons["test_train_gpu"]
    assert "could not import 'triton'" in reasons["test_update_gpu"]
    if not torch.cuda.is_available():
        assert reasons["test_gpu_step_gpu"] == "needs a CUDA GPU"
