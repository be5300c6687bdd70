"""How much arithmetic a training step is, and how much of a GPU's peak that uses (MFU, model FLOPs
utilisation).
"""

# Dense tensor-core peaks of bf16 and fp16 (V100: of fp16, it has no other), FLOP/s, by what
# torch.cuda.get_device_name() contains, of which the first counts; without an addition the SXM
# module is meant. Source: NVIDIA's data sheets.
_PEAKS = {
    "H200 NVL": 836e12, "H100 NVL": 836e12, "H100 PCIe": 756e12, "H200": 989e12, "H100": 989e12,
    "A100": 312e12, "NVIDIA A30": 165e12, "V100-SXM2": 125e12, "V100-PCIE": 112e12,
}  # fmt: skip


def training_flops(config, length, num_predictions):
    """FLOPs of forward and backward pass for one sequence of `length` tokens with `num_predictions`
    masked ones (a float).

    A multiplication and an addition are two; the backward pass is twice the forward. Matrix
    products only, as is usual.
    """
    hidden, intermediate = config.hidden_size, config.intermediate_size
    layer = 2 * length * (4 * hidden**2 + 2 * hidden * intermediate) + 4 * length**2 * hidden
    heads = 2 * num_predictions * (hidden**2 + hidden * config.vocab_size) + 2 * hidden**2
    return 3.0 * (config.num_hidden_layers * layer + heads)


def peak_flops(device_name):
    """The peak of a GPU in FLOP/s, or None where it is not known."""
    return next((peak for name, peak in _PEAKS.items() if name in device_name), None)
