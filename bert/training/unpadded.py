"""BERT's forward pass without padding, which is about half of MLPerf's positions.

Shapes: B examples, S positions, T tokens of all examples that are not padding, H hidden size.
`token_indices` and `token_offsets`: see bert/examples/batch.py.
"""

from collections.abc import Callable
from itertools import groupby

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer


def encode(
    bert: BertModel,
    input_ids: torch.Tensor,
    segment_ids: torch.Tensor,
    token_indices: torch.Tensor,
    token_offsets: torch.Tensor,
    run_layer: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Returns the last hidden states [T, H].

    input_ids, segment_ids: int64 [B, S]; token_indices: int64 [T]; token_offsets: int32 [B + 1];
    run_layer: the function below, perhaps compiled.
    """
    seq_length = input_ids.shape[1]
    hidden = bert.embeddings(
        input_ids=input_ids.flatten()[token_indices][None],
        token_type_ids=segment_ids.flatten()[token_indices][None],
        position_ids=(token_indices % seq_length)[None],
    )[0]
    attend = attention_on(hidden.device)
    for layer in bert.encoder.layer:
        # No example has more than `seq_length` tokens. Only the GPU knows how many the longest has.
        arguments = layer, hidden, token_offsets, seq_length, attend
        if bert.encoder.gradient_checkpointing and bert.training:
            hidden = checkpoint(run_layer, *arguments, use_reentrant=False)
        else:
            hidden = run_layer(*arguments)
    return hidden


def run_layer(
    layer: BertLayer,
    hidden: torch.Tensor,
    token_offsets: torch.Tensor,
    max_length: int,
    attend: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Runs a layer on all tokens. hidden and the result: [T, H]; attend: of `attention_on`."""
    attention = layer.attention.self
    query, key, value = (
        projection(hidden).unflatten(-1, (-1, attention.attention_head_size))
        for projection in (attention.query, attention.key, attention.value)
    )
    dropout = attention.dropout.p if attention.training else 0.0
    mixed = attend(query, key, value, token_offsets, max_length, dropout).flatten(-2)
    attended = layer.attention.output(mixed, hidden)
    return layer.output(layer.intermediate(attended), attended)


# --------------------------------------------------------------------------------------------------
# Attention within each example. query, key, value and the result: [T, heads, head size]


def attention_on(device: torch.device) -> Callable[..., torch.Tensor]:
    """Returns the function below that is the fastest on a device."""
    if device.type != "cuda":
        return _attend_by_runs
    return _flash if torch.cuda.get_device_capability(device) >= (8, 0) else _memory_efficient


@torch.compiler.disable  # the lengths change with each batch
def _attend_by_runs(query, key, value, token_offsets, max_length, dropout):
    """One example after the other, or neighbours of the same length at once."""
    runs = [(length, len(list(run))) for length, run in groupby(token_offsets.diff().tolist())]
    sizes = [length * count for length, count in runs]
    mixed = []
    for (length, count), *tensors in zip(runs, *(x.split(sizes) for x in (query, key, value))):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in tensors)
        one_run = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        mixed.append(one_run.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)


# Both call the operators that scaled_dot_product_attention calls for nested tensors, but without
# nested tensors. These take the host longer than the GPU needs for a layer, and new ones, made in
# a recomputation, do not match the first ones. torch 2.10 has a public function for the same,
# torch.nn.attention.varlen.varlen_attn, but without dropout.


def _flash(query, key, value, token_offsets, max_length, dropout):
    """On GPUs from A100 on, in bf16 and fp16; in float32 as `_memory_efficient`."""
    if query.dtype == torch.float32:
        return _memory_efficient(query, key, value, token_offsets, max_length, dropout)
    is_causal = return_debug_mask = False
    return torch.ops.aten._flash_attention_forward(
        *_align_heads(query, key, value), token_offsets, token_offsets, max_length, max_length,
        dropout, is_causal, return_debug_mask,
    )[0][..., : query.shape[-1]]  # fmt: skip


def _memory_efficient(query, key, value, token_offsets, max_length, dropout):
    bias, no_mask, keeps_for_backward = None, 0, query.requires_grad
    return torch.ops.aten._efficient_attention_forward(
        *(x[None] for x in _align_heads(query, key, value)), bias, token_offsets, token_offsets,
        max_length, max_length, dropout, no_mask, keeps_for_backward,
    )[0][0, ..., : query.shape[-1]]  # fmt: skip


def _align_heads(query, key, value):
    """Adds zeros up to a head size that is a multiple of 8, which the kernels need."""
    size = query.shape[-1]
    aligned = size + -size % 8
    if aligned == size:
        return query, key, value
    # The kernels divide by the root of the size that they see. (To give them a `scale` would break
    # torch.compile: in torch 2.5 _efficient_attention_backward does not take it there.)
    query = query * (aligned / size) ** 0.5
    return (F.pad(x, (0, aligned - size)) for x in (query, key, value))
