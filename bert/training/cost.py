"""What a training run costs, computed from shapes: memory per GPU, disk, FLOPs and time.

Nothing is measured, so all of it is an estimate. What stays in the memory of a GPU from the forward
to the backward pass is counted tensor by tensor, as in Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models" (arXiv:2205.05198): in 16 bits, 10 + 24 / tp_size bytes
per token, layer and unit of the hidden size. Their attention matrices are not kept here, as
attention is by fused kernels. Under autocast (--plugin=ddp) more is kept, because the residual
stream is float32 and is rounded anew for each matrix product.

Shapes: H hidden size, I intermediate size, V vocabulary.
"""

from typing import NamedTuple

from transformers import BertConfig

_ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_FLOAT32 = 4
_MASK = 1  # bytes of an element of a dropout mask


class Layout(NamedTuple):
    """How a run uses its GPUs: the flags of the same names, and how many GPUs there are."""

    plugin: str
    precision: str  # fp32, bf16 or fp16
    tp_size: int
    gradient_checkpointing: bool
    num_gpus: int

    @property
    def shares(self) -> int:
        """Groups of GPUs, each with other examples."""
        return self.num_gpus // self.tp_size

    @property
    def is_autocast(self) -> bool:
        return self.plugin == "ddp" and self.precision != "fp32"


def num_parameters(config: BertConfig) -> int:
    """Returns the parameters of `BertForPreTraining`, whose output weights are the embeddings."""
    hidden = config.hidden_size
    layer_norm = 2 * hidden
    embeddings = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    biases = 5 * hidden + config.intermediate_size
    layer = _layer_matrices(config) + biases + 2 * layer_norm
    pooler = transform = hidden**2 + hidden
    heads = pooler + transform + layer_norm + config.vocab_size + 2 * hidden + 2
    return embeddings * hidden + layer_norm + config.num_hidden_layers * layer + heads


def _layer_matrices(config):
    """Returns the weights of a layer in matrices."""
    return 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size


def state_bytes(config: BertConfig, layout: Layout) -> float:
    """Returns the bytes of weights, gradients and optimizer state on a GPU.

    As bert/training/plugins.py has them: ddp keeps all in float32; the others weights and gradients
    in the precision, float32 master weights with their gradients, and two moments.
    """
    parameters, optimizer_state = num_parameters(config), 2 * _FLOAT32
    element = _ELEMENT_BYTES[layout.precision]
    if layout.plugin == "ddp":
        return parameters * (2 * _FLOAT32 + optimizer_state)
    masters = 2 * _FLOAT32
    if layout.plugin == "zero1":
        return parameters * (2 * element + (masters + optimizer_state) / layout.num_gpus)
    cut = config.num_hidden_layers * _layer_matrices(config)
    cut += config.vocab_size * config.hidden_size
    own = parameters - cut * (1 - 1 / layout.tp_size)
    return own * (2 * element + (0 if element == _FLOAT32 else masters) + optimizer_state)


def activation_bytes(
    config: BertConfig, layout: Layout, num_tokens: float, num_predictions: float
) -> float:
    """Returns the bytes that a GPU keeps from the forward pass of a micro-batch for the backward
    pass, at their peak: with the gradients of the logits. num_tokens, num_predictions: of the
    micro-batch, with or without padding. --compile may keep less.
    """
    hidden, element = config.hidden_size, _ELEMENT_BYTES[layout.precision]
    residual = _FLOAT32 if layout.is_autocast else element
    mask = _MASK if config.hidden_dropout_prob else 0
    # Inputs of query, key and value (one tensor, unless each is rounded for itself) and of the
    # first matrix of the MLP; inputs of both layer norms; both dropout masks.
    whole = hidden * ((3 if layout.is_autocast else 1) * element + element + 2 * (residual + mask))
    # Query, key, value, result of attention; input and result of GELU. Cut by tensor parallelism.
    cut = element * (4 * hidden + 2 * config.intermediate_size)
    layer = whole + cut / layout.tp_size
    num_layers = config.num_hidden_layers
    if layout.gradient_checkpointing:  # the inputs of all layers, and one layer whole
        per_token = num_layers * residual * hidden + layer
    else:
        per_token = num_layers * layer
    embeddings = hidden * (residual + mask)
    # Input of the head's matrix, of GELU, of the layer norm, of the decoder; logits; in float32 the
    # logarithms of the probabilities, and twice the gradients of the logits.
    head = hidden * (3 * element + residual) + config.vocab_size * (element + 3 * _FLOAT32)
    rounded_weights = element * num_parameters(config) if layout.is_autocast else 0
    return num_tokens * (per_token + embeddings) + num_predictions * head + rounded_weights


def smallest_steps_per_update(
    config: BertConfig, layout: Layout, batch_size: int, example: tuple[float, float], gpu: float
) -> int | None:
    """Returns the smallest --steps_per_update with which a run fits into `gpu` bytes, or None.

    batch_size: of the run. example: its tokens and predictions.
    """
    if batch_size % layout.shares:
        return None
    own = batch_size // layout.shares
    free = gpu - state_bytes(config, layout)
    for micro_batch_size in range(own, 0, -1):
        tokens, predictions = (micro_batch_size * number for number in example)
        is_divisor = own % micro_batch_size == 0
        if is_divisor and activation_bytes(config, layout, tokens, predictions) <= free:
            return own // micro_batch_size
    return None


class Disk(NamedTuple):
    """Bytes in --output_dir, without logs, tokenizers and random states, which are some MB."""

    num_checkpoints: int  # that are kept
    checkpoint: int  # each: float32 weights and two moments
    model: int  # best/, and model/: float32 weights

    @property
    def total(self) -> int:
        models = 2 * self.model if self.num_checkpoints else 0
        return self.num_checkpoints * self.checkpoint + models


def disk_bytes(config: BertConfig, num_steps: int, save_steps: int, keep_max: int) -> Disk:
    """save_steps: --save_checkpoints_steps; keep_max: --keep_checkpoint_max; 0 as in train.py."""
    written = -(-num_steps // save_steps) if save_steps else min(num_steps, 1)
    kept = min(written, keep_max) if keep_max else written
    parameters = num_parameters(config)
    return Disk(kept, 3 * _FLOAT32 * parameters, _FLOAT32 * parameters)


def hours(flops: float, num_gpus: int, peak: float, mfu: float) -> float:
    """Returns the time for `flops` on GPUs of `peak` FLOP/s at a model FLOPs utilisation."""
    return flops / (num_gpus * peak * mfu) / 3600
