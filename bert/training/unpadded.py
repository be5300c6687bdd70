"""BERT's forward pass without padding, which is about half of MLPerf's positions.

Shapes: B examples, S positions, P predictions per example, T tokens of all examples that are not
padding, H hidden size.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertModel


def encode(
    bert: BertModel, input_ids: torch.Tensor, input_mask: torch.Tensor, segment_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the last hidden states [T, H], and the place of each position in them, int64 [B, S].

    input_ids, input_mask, segment_ids: int64 [B, S]. Places of padding have no meaning.
    """
    places = (input_mask.flatten().cumsum(0) - 1).view_as(input_ids)
    # int64 [T]; the only operation that waits for the GPU.
    tokens = input_mask.flatten().nonzero().squeeze(1)
    hidden = bert.embeddings(
        input_ids=input_ids.flatten()[tokens][None],
        token_type_ids=segment_ids.flatten()[tokens][None],
        position_ids=(tokens % input_ids.shape[1])[None],
    )[0]
    lengths = input_mask.sum(1)
    for layer in bert.encoder.layer:
        arguments = layer, hidden, lengths, input_ids.shape[1]
        if bert.encoder.gradient_checkpointing and bert.training:
            hidden = checkpoint(_run_layer, *arguments, use_reentrant=False)
        else:
            hidden = _run_layer(*arguments)
    return hidden, places


def _run_layer(layer, hidden, lengths, max_length):
    """Runs a `BertLayer` on all tokens. hidden and the result: [T, H]; lengths: int64 [B]."""
    attention = layer.attention.self
    query, key, value = (
        projection(hidden).unflatten(-1, (-1, attention.attention_head_size))
        for projection in (attention.query, attention.key, attention.value)
    )
    dropout = attention.dropout.p if attention.training else 0.0
    mixed = _attend(query, key, value, lengths, max_length, dropout).flatten(-2)
    attended = layer.attention.output(mixed, hidden)
    return layer.output(layer.intermediate(attended), attended)


def _attend(query, key, value, lengths, max_length, dropout):
    """Attention within each example: [T, heads, head size] all; lengths: int64 [B], sum T."""
    if query.is_cuda:
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(
                tensor, offsets, min_seqlen=1, max_seqlen=max_length
            ).transpose(1, 2)
            for tensor in (query, key, value)
        )
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).values()
    # On the CPU, one example after the other is 7 times as fast as nested tensors.
    examples = zip(*(x.transpose(0, 1).split(lengths.tolist(), dim=1) for x in (query, key, value)))
    mixed = [
        F.scaled_dot_product_attention(q[None], k[None], v[None], dropout_p=dropout)[0]
        for q, k, v in examples
    ]
    return torch.cat(mixed, dim=1).transpose(0, 1)
