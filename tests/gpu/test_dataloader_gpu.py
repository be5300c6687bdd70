"""The loader on a GPU: the same batches as on the CPU. Needs DALI and numba.

Skips without CUDA: ./run_tests.sh tests/gpu
"""

import pytest
import torch

for package in ("nvidia.dali", "numba", "google_crc32c"):
    pytest.importorskip(package)

# isort: split
from bert_dali_dataloader import DaliDataloader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("training", [False, True])
def test_batches_equal_those_on_the_cpu(tfrecord_folder, training):
    files = tfrecord_folder([37, 5])
    cpu, gpu = (
        DaliDataloader(*files, batch_size=8, training=training, cuda=cuda, device_id=0)
        for cuda in (False, True)
    )
    pairs = list(zip(cpu, gpu, strict=True))
    assert len(pairs) == len(cpu)
    for expected, found in pairs:
        for name in expected:
            assert found[name].device == torch.device("cuda", 0)
            assert torch.equal(found[name].cpu(), expected[name])


def test_state_and_empty_batches(tfrecord_folder):
    """As on the CPU: a state resumes behind the batch given out last; a rank without records gets a
    batch of 0 rows.
    """
    files = tfrecord_folder([37, 5])
    options = {"batch_size": 8, "cuda": True, "device_id": 0}
    loader = DaliDataloader(*files, **options)
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    resumed = DaliDataloader(*files, **options)
    resumed.load_state_dict(loader.state_dict())
    for expected, found in zip(batches, resumed, strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    (batch,) = DaliDataloader(*files, shard_id=63, num_shards=64, training=False, **options)
    assert {(len(tensor), tensor.device) for tensor in batch.values()} == {
        (0, torch.device("cuda", 0))
    }


def test_batches_stay_as_they_are_while_others_are_made(tfrecord_folder):
    """DALI uses its memory again: a batch that is kept must not change."""
    files = tfrecord_folder([300])
    options = {"batch_size": 8, "training": False, "device_id": 0}
    kept = list(DaliDataloader(*files, cuda=True, **options))
    torch.cuda.synchronize()
    for expected, found in zip(DaliDataloader(*files, cuda=False, **options), kept, strict=True):
        assert all(torch.equal(found[name].cpu(), expected[name]) for name in expected)
