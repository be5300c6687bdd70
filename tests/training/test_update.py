"""The Triton kernels of an optimizer's update: without a GPU, by Triton's interpreter; and what
they are compiled to.
"""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from update_cases import CASES

from bert.training import update_triton


@pytest.fixture(scope="module")
def interpreted():
    """{case: difference}, from a process that imports triton after the switch is set."""
    process = subprocess.run(
        [sys.executable, ROOT / "tests/update_cases.py"],
        capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_reference_implementation(interpreted, case):
    assert interpreted[case] < 1e-6


TYPES = {
    "addresses": "*i64", "sizes": "*i64", "first_blocks": "*i32", "tensor_of_block": "*i32",
    "num_tensors": "i32", "num_blocks": "i32", "scalars": "*fp32", "squares_of_blocks": "*fp32",
    "scales": "*fp32",
}  # fmt: skip


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    "kernel, lists_read, lists_written",
    [(update_triton._directions_kernel, 4, 3), (update_triton._subtract_kernel, 2, 1)],
    ids=["directions", "subtract"],
)
def test_kernels_compiled_for_gpus_move_16_bytes_at_a_time(
    kernel, lists_read, lists_written, architecture
):
    """Triton compiles without a GPU. Its instructions for one thread: 16 of a block's elements."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"IS_ALIGNED": True, "BLOCK": update_triton.BLOCK}
    source = ASTSource(
        kernel,
        {
            place: TYPES.get(name, "fp32")
            for place, name in enumerate(kernel.arg_names)
            if name not in constants
        },
        {kernel.arg_names.index(name): value for name, value in constants.items()},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": update_triton.NUM_WARPS},
    )
    elements = update_triton.BLOCK // (32 * update_triton.NUM_WARPS)
    for instruction, lists in (("ld", lists_read), ("st", lists_written)):
        wide = re.findall(rf"{instruction}\.global\.v4\.b32", compiled.asm["ptx"])
        assert len(wide) == lists * elements / 4
