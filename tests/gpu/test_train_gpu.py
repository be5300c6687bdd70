"""train.py on a GPU, in bf16 and fp32. Skips without CUDA: ./run_tests.sh tests/gpu"""

import pytest
import torch
from training_runs import copy_of_run_as_it_was, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_fp32_losses_equal_those_on_the_cpu(training_data, tmp_path):
    cpu, _ = train(training_data, tmp_path / "cpu", "--device=cpu")
    gpu, _ = train(training_data, tmp_path / "gpu", "--device=cuda", "--precision=fp32")
    assert [row["loss"] for row in gpu] == pytest.approx([row["loss"] for row in cpu], rel=1e-3)


def test_bf16_is_close(training_data, tmp_path):
    fp32, _ = train(training_data, tmp_path / "fp32", "--device=cuda", "--precision=fp32")
    bf16, _ = train(training_data, tmp_path / "bf16", "--device=cuda")
    assert [row["loss"] for row in bf16] == pytest.approx([row["loss"] for row in fp32], rel=2e-2)


def test_padding_left_out_changes_nothing(training_data, tmp_path):
    padded, _ = train(training_data, tmp_path / "padded", "--device=cuda")
    unpadded, _ = train(training_data, tmp_path / "unpadded", "--device=cuda", "--unpad=True")
    assert [row["loss"] for row in unpadded] == pytest.approx([row["loss"] for row in padded], rel=2e-2)


def test_goes_on_from_a_checkpoint(training_data, tmp_path):
    more = ("--device=cuda", "--num_train_steps=6", "--save_checkpoints_steps=3", "--keep_checkpoint_max=0")
    straight, _ = train(training_data, tmp_path / "straight", *more)
    other = copy_of_run_as_it_was(tmp_path / "straight", 3, tmp_path / "stopped")
    gone_on, _ = train(training_data, other, *more)
    assert [row["loss"] for row in gone_on] == pytest.approx([row["loss"] for row in straight], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("plugin", ["zero1", "hybrid"])
def test_plugins_are_close_to_data_parallelism(training_data, tmp_path, plugin, precision):
    plain, _ = train(training_data, tmp_path / "plain", "--device=cuda", "--precision=fp32")
    other, _ = train(training_data, tmp_path / "other", "--device=cuda", f"--precision={precision}", f"--plugin={plugin}")
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in plain], rel=2e-2)


@pytest.mark.parametrize("more", [("--compile",), ("--gradient_checkpointing",), ("--gradient_checkpointing", "--unpad")])
def test_ways_to_save_time_and_memory(training_data, tmp_path, more):
    plain, _ = train(training_data, tmp_path / "plain", "--device=cuda")
    other, _ = train(training_data, tmp_path / "other", "--device=cuda", *more)
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in plain], rel=2e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("more", [("--plugin=ddp",), ("--plugin=zero1",), ("--plugin=hybrid", "--tp_size=2")])
def test_two_gpus_make_the_updates_of_one(training_data, tmp_path, more):
    one, _ = train(training_data, tmp_path / "one", "--device=cuda", "--precision=fp32")
    two, _ = train(training_data, tmp_path / "two", "--device=cuda", "--precision=fp32", *more, processes=2)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-3)
