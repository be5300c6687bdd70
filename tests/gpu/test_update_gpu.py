"""The Triton kernels of an optimizer's update, on a GPU. Needs torch, with its triton, only.

Skips without CUDA: ./run_tests.sh tests/gpu
"""

import pytest
import torch

pytest.importorskip("triton")

# isort: split
from update_cases import CASES, differences

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_reference_implementation(case):
    """The GPU divides and takes roots to within 2 units of the last digit."""
    assert max(differences(case, "cuda").values()) < 1e-5
