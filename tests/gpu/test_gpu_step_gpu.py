"""A step on a GPU against float32 on the CPU, compiled too. Needs torch and transformers only.

Skips without CUDA: ./run_tests.sh tests/gpu
"""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_step_equals_the_cpu(tmp_path):
    """The script checks losses, gradients and updates itself."""
    report = tmp_path / "report.json"
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu_step.py", "--sizes=tiny", "--batch_size=4",
         "--steps=2", f"--output={report}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    for result in json.loads(report.read_text())["results"]:
        assert result["attention_kernels"], result
