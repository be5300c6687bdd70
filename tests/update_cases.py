"""The optimizers' update by Triton kernels against the one for the CPU.

TRITON_INTERPRET=1 python3 tests/update_cases.py   # kernels on the CPU, by Triton's interpreter

Prints {case: the largest difference of a tensor, relative to its norm}. tests/gpu compares the same
cases on a GPU.
"""

import ctypes
import json
import os
import sys
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np
import torch

from bert.training import optimization, update_triton
from bert.training.optimization import AdamWeightDecay, Lamb, LossScale

# Numbers of elements, from the kernels' block size: less than one block, and several.
SIZES = {
    "aligned": lambda block: (4, block // 4, 6 * block - 36),
    "odd": lambda block: (1, 3, block + 1, 6 * block - 35),
}
OPTIMIZERS = {
    "lamb": (Lamb, {}),
    "adamw": (AdamWeightDecay, {}),
    "adamw, bias correction": (AdamWeightDecay, {"bias_correction": True}),
}
# optimizer, weight decay, sizes, whether the loss is scaled as in fp16
CASES = {
    ", ".join(map(str, case)): case
    for case in (
        ("lamb", 0.01, "aligned", False),
        ("lamb", 0.0, "odd", False),
        ("lamb", 0.01, "odd", True),
        ("adamw", 0.01, "odd", False),
        ("adamw", 0.0, "aligned", True),
        ("adamw, bias correction", 0.01, "odd", False),
    )
}
RATES = (0.0, 0.01, 0.02, 0.01)  # a step with rate 0 counts
SKIPPED = (0, 3)  # among them: steps with a gradient that is not finite


def differences(case, device):
    """Updates the same weights on the CPU and by Triton kernels; {what: relative difference}."""
    expected, found = run(case, "cpu"), run(case, device, update_triton)
    assert expected.keys() == found.keys()
    return {
        name: ((found[name].cpu() - tensor).norm() / tensor.norm().clamp(min=1e-30)).item()
        for name, tensor in expected.items()
    }


def run(case, device, passes=None):
    """Returns {name: tensor} of weights, state and norms after some steps."""
    optimizer_name, decay, sizes_name, has_scale = CASES[case]
    optimizer_class, options = OPTIMIZERS[optimizer_name]
    generator = torch.Generator().manual_seed(1)
    sizes = SIZES[sizes_name](update_triton.BLOCK)
    weights = {
        f"{kind} {size}": torch.nn.Parameter(
            (torch.randn(size, generator=generator) * (kind != "zero")).to(device)
        )
        for kind in ("regular", "excepted", "zero")
        for size in sizes
    }
    of_kind = {
        kind: [weight for name, weight in weights.items() if kind in name]
        for kind in ("regular", "excepted", "zero")
    }
    groups = [
        {"params": of_kind["regular"] + of_kind["zero"], "weight_decay": decay},
        {"params": of_kind["excepted"], "weight_decay": 0.0},
    ]
    for group, layer_adaptation in zip(groups, (True, False)):
        group["layer_adaptation"] = layer_adaptation
    optimizer = optimizer_class(
        groups, max_grad_norm=1.0, loss_scale=LossScale(device) if has_scale else None, **options
    )
    norms = []
    for step, rate in enumerate(RATES):
        for name, weight in weights.items():
            gradient = torch.randn(weight.shape, generator=generator)
            # A weight and a direction of norm 0 too: trust ratio 1.
            weight.grad = (gradient * (name != f"zero {sizes[0]}")).to(device)
        if step in SKIPPED:
            list(weights.values())[step].grad[-1] = (float("nan"), float("inf"))[step % 2]
        for group in groups:
            group["lr"] = rate
        with mock.patch.object(optimization, "_passes", lambda weights: passes or real_passes):
            optimizer.step()
        norms.append(optimizer.gradient_norm)
    assert [norm.isfinite().item() for norm in norms] == [
        step not in SKIPPED for step in range(len(RATES))
    ]
    state = {
        f"{kind} of {name}": optimizer.state[weight][kind]
        for name, weight in weights.items()
        for kind in "mvt"
    }
    weights = {name: weight.detach() for name, weight in weights.items()}
    norms = {f"gradient norm {i}": norm for i, norm in enumerate(norms) if i not in SKIPPED}
    return weights | state | norms


real_passes = optimization.update_cpu


class Memory:
    """What Triton's interpreter reads and writes by. Triton 3.1's own takes numpy 2's elements to
    be of 0 bytes.
    """

    @staticmethod
    def load(addresses, mask, other, dtype):
        values = other.astype(dtype)
        values[mask] = Memory.view(addresses[mask], values.dtype)
        return values

    @staticmethod
    def store(addresses, values, mask):
        Memory.view(addresses[mask], values.dtype)[:] = values[mask]

    @staticmethod
    def view(addresses, dtype):
        """An array of what lies at addresses that follow each other, as these kernels' do."""
        if not len(addresses):
            return np.empty(0, dtype)
        assert (np.diff(addresses) == dtype.itemsize).all()
        memory = ctypes.c_char * (len(addresses) * dtype.itemsize)
        return np.frombuffer(memory.from_address(int(addresses[0])), dtype)


def main():
    from triton.runtime import interpreter

    interpreter._interpreter = Memory
    update_triton.BLOCK, update_triton.SUM_BLOCK = 256, 4
    results = {case: differences(case, "cpu") for case in CASES}
    print(json.dumps({case: max(result.values()) for case, result in results.items()}))


if __name__ == "__main__":
    main()
