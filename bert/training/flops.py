"""FLOPs of a training step and peak FLOP/s of GPUs, for MFU (model FLOPs utilisation)."""

from transformers import BertConfig

# Dense tensor-core peaks in FLOP/s, of bf16 and fp16 (V100 has fp16 only). The first name that
# torch.cuda.get_device_name() contains counts; "H100" alone means the SXM module. Source: NVIDIA's
# data sheets.
_PEAKS = {
    "H200 NVL": 836e12, "H100 NVL": 836e12, "H100 PCIe": 756e12, "H200": 989e12, "H100": 989e12,
    "A100": 312e12, "NVIDIA A30": 165e12, "V100-SXM2": 125e12, "V100-PCIE": 112e12,
}  # fmt: skip


def training_flops(config: BertConfig, length: float, num_predictions: float) -> float:
    """Returns the FLOPs of a forward and backward pass for one sequence of `length` tokens.

    num_predictions: masked tokens of it. A multiplication and an addition count as two; the
    backward pass is twice the forward. As usual, matrix products only.
    """
    hidden, intermediate = config.hidden_size, config.intermediate_size
    layer = 2 * length * (4 * hidden**2 + 2 * hidden * intermediate) + 4 * length**2 * hidden
    heads = 2 * num_predictions * (hidden**2 + hidden * config.vocab_size) + 2 * hidden**2
    return 3.0 * (config.num_hidden_layers * layer + heads)


def peak_flops(device_name: str) -> float | None:
    """Returns the peak of a GPU in FLOP/s, or None if it is not known."""
    return next((peak for name, peak in _PEAKS.items() if name in device_name), None)
