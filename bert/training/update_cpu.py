"""The optimizers' update in two passes over memory, on the CPU.

The reference implementation of bert/training/update_triton.py, which has the same three functions.
Each works on one chunk of a tensor after another: small enough to stay in the cache while the
chunk's dozen operations run, and the only additional memory.

Shapes: T tensors, each contiguous float32 of any shape.
"""

import torch

Tensors = list[torch.Tensor]

# Elements of a chunk per thread: 128 KB of each of four tensors and a temporary one.
_CHUNK = 2**15


def compute_directions(
    weights: Tensors,
    gradients: Tensors,
    m: Tensors,
    v: Tensors,
    scalars: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.Tensor:
    """Updates `m` and `v`; replaces each gradient by the direction of its weight's update.

    Returns the sums of squares of weights and of directions, float32 [2, T].
    scalars: float32 [4]: the factor of the gradients, 1 if they are finite, and what m and v are
    divided by in the direction. Where gradients are not finite, `m` and `v` do not change.
    """
    factor, is_finite, m_correction, v_correction = scalars.unbind()
    is_skipped = is_finite == 0
    keep = [torch.where(is_skipped, 1.0, beta) for beta in betas]
    squares = []
    for tensors in zip(weights, gradients, m, v):
        squares_of_chunks = []
        for w, g, m_chunk, v_chunk in _chunks(tensors):
            g.mul_(factor).masked_fill_(is_skipped, 0.0)  # 0 * infinity would not be 0
            m_chunk.mul_(keep[0]).add_(g, alpha=1 - betas[0])
            v_chunk.mul_(keep[1]).addcmul_(g, g, value=1 - betas[1])
            denominator = v_chunk.div(v_correction).sqrt_().add_(eps)
            torch.div(m_chunk, m_correction, out=g).div_(denominator).add_(w, alpha=weight_decay)
            squares_of_chunks.append(torch.stack([_square(w), _square(g)]))
        squares.append(torch.stack(squares_of_chunks).sum(0))
    return torch.stack(squares, dim=1)


def subtract(weights: Tensors, directions: Tensors, scales: torch.Tensor) -> None:
    """weights -= scales * directions; scales: float32 [T], all 0 where the update is skipped."""
    for weight, direction, scale in zip(weights, directions, scales.unbind()):
        weight.addcmul_(direction, scale, value=-1)


def squared_norms(tensors: Tensors) -> torch.Tensor:
    """Returns the squared Euclidean norm of each tensor, float32 [T].

    torch's own CPU norms of large float32 tensors are off by up to 1e-3.
    """
    return torch.stack(
        [
            torch.stack([_square(x) for (x,) in _chunks([tensor.contiguous()])]).sum()
            for tensor in tensors
        ]
    )


def _chunks(tensors):
    size = _CHUNK * torch.get_num_threads()
    return zip(*(tensor.view(-1).split(size) for tensor in tensors))


def _square(chunk):
    return chunk.pow(2).sum()
