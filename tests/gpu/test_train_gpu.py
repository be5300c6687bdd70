"""train.py on a GPU, in bf16 and fp32. Skips without CUDA: ./run_tests.sh tests/gpu"""

import pytest
import torch
from test_train import train, training_data  # noqa: F401  the fixture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_fp32_losses_equal_those_on_the_cpu(training_data, tmp_path):  # noqa: F811
    cpu, _ = train(training_data, tmp_path / "cpu", "--device=cpu")
    gpu, _ = train(training_data, tmp_path / "gpu", "--device=cuda", "--precision=fp32")
    assert [row["loss"] for row in gpu] == pytest.approx([row["loss"] for row in cpu], rel=1e-3)


def test_bf16_is_close(training_data, tmp_path):  # noqa: F811
    fp32, _ = train(training_data, tmp_path / "fp32", "--device=cuda", "--precision=fp32")
    bf16, _ = train(training_data, tmp_path / "bf16", "--device=cuda")
    assert [row["loss"] for row in bf16] == pytest.approx([row["loss"] for row in fp32], rel=2e-2)
