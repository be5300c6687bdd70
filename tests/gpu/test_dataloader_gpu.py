"""The loader on a GPU: the same batches as on the CPU. Skips without CUDA: ./run_tests.sh tests/gpu"""

import pytest
import torch

from bert_dali_dataloader import DaliDataloader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("training", [False, True])
def test_batches_equal_those_on_the_cpu(tfrecord_folder, training):
    files = tfrecord_folder([37, 5])
    cpu, gpu = (DaliDataloader(*files, batch_size=8, training=training, cuda=cuda, device_id=0) for cuda in (False, True))
    pairs = list(zip(cpu, gpu, strict=True))
    assert len(pairs) == len(cpu)
    for expected, found in pairs:
        for name in expected:
            assert found[name].device == torch.device("cuda", 0)
            assert torch.equal(found[name].cpu(), expected[name])
