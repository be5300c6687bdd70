"""The optimizers' update in two passes over memory: Triton kernels for CUDA.

bert/training/update_cpu.py is the reference implementation, with the same functions. Memory traffic
per parameter, all of it float32:

    squared_norms       reads g                        4 bytes
    compute_directions  reads w, g, m, v; writes g, m, v  28
    subtract            reads w, g; writes w              12
                                                       44 x 336,226,108 parameters = 14.8 GB

BERT-large's 14.8 GB are 4.4 ms at an H100's 3.35 TB/s. A launch takes all tensors: a block of it
works on BLOCK elements of one tensor, which it finds by a table of addresses.

Shapes: T tensors, each contiguous float32 of any shape; N blocks of all tensors.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

Tensors = list[torch.Tensor]

BLOCK, NUM_WARPS = 4096, 8  # 16 elements per thread
SUM_BLOCK = 1024


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
    """As update_cpu.compute_directions, but leaves gradients that are not finite as they are."""
    table = _table(weights, gradients, m, v)
    squares_of_blocks = torch.empty(2, table.num_blocks, device=scalars.device)
    squares = torch.empty(2, len(weights), device=scalars.device)
    _directions_kernel[(table.num_blocks,)](
        *table.tensors, len(weights), scalars, squares_of_blocks, table.num_blocks, betas[0],
        1 - betas[0], betas[1], 1 - betas[1], eps, weight_decay, table.is_aligned, BLOCK,
        num_warps=NUM_WARPS,
    )  # fmt: skip
    _sum_kernel[(len(weights), 2)](
        squares_of_blocks, table.tensors[2], squares, table.num_blocks, len(weights), SUM_BLOCK
    )
    return squares


def subtract(weights: Tensors, directions: Tensors, scales: torch.Tensor) -> None:
    """weights -= scales * directions; scales: float32 [T]. Where a scale is 0, nothing changes."""
    table = _table(weights, directions)
    _subtract_kernel[(table.num_blocks,)](
        *table.tensors, len(weights), scales, table.is_aligned, BLOCK, num_warps=NUM_WARPS
    )


def squared_norms(tensors: Tensors) -> torch.Tensor:
    """Returns the squared Euclidean norm of each tensor, float32 [T]."""
    return torch.stack(torch._foreach_norm(tensors)).square()


class _Table(NamedTuple):
    # addresses int64 [lists, T], sizes int64 [T], first blocks int32 [T + 1], and the tensor of
    # each block int32 [N]
    tensors: tuple[torch.Tensor, ...]
    num_blocks: int
    is_aligned: bool


def _table(*lists):
    """Where the tensors of some lists lie; each list has tensors of the same sizes."""
    sizes = tuple(tensor.numel() for tensor in lists[0])
    for tensors in lists:
        for tensor, size in zip(tensors, sizes, strict=True):
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                raise ValueError(
                    f"expected contiguous float32 tensors, found {tensor.dtype} with the strides "
                    f"{tensor.stride()} of shape {tuple(tensor.shape)}"
                )
            if tensor.numel() != size:
                raise ValueError(f"expected {size} elements, found {tensor.numel()}")
    addresses = tuple(tensor.data_ptr() for tensors in lists for tensor in tensors)
    return _make_table(addresses, sizes, lists[0][0].device)


# Addresses of the weights stay as they are, those of the gradients mostly.
@functools.lru_cache(maxsize=8)
def _make_table(addresses, sizes, device):
    first_blocks, tensor_of_block = _make_blocks(sizes, device)
    table = _to_device(torch.tensor(addresses).view(-1, len(sizes)), device)
    return _Table(
        (table, _to_device(torch.tensor(sizes), device), first_blocks, tensor_of_block),
        len(tensor_of_block),
        # Then a thread reads 16 bytes at a time.
        all(address % 16 == 0 for address in addresses) and all(size % 4 == 0 for size in sizes),
    )


@functools.lru_cache(maxsize=8)
def _make_blocks(sizes, device):
    counts = torch.tensor([triton.cdiv(size, BLOCK) for size in sizes])
    first_blocks = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    tensor_of_block = torch.arange(len(sizes)).repeat_interleave(counts)
    return _to_device(first_blocks.int(), device), _to_device(tensor_of_block.int(), device)


def _to_device(tensor, device):
    """Copies from the CPU without waiting for the GPU."""
    is_cuda = device.type == "cuda"
    return (tensor.pin_memory() if is_cuda else tensor).to(device, non_blocking=True)


@triton.jit
def _locate(sizes, first_blocks, tensor_of_block, IS_ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Returns this block's tensor, its elements int64 [BLOCK], and how many the tensor has."""
    block = tl.program_id(0)
    tensor = tl.load(tensor_of_block + block)
    size = tl.load(sizes + tensor)
    if IS_ALIGNED:
        size = tl.multiple_of(size, 4)
    first = (block - tl.load(first_blocks + tensor)).to(tl.int64) * BLOCK
    return tensor, first + tl.arange(0, BLOCK), size


@triton.jit
def _start(addresses, place, IS_ALIGNED: tl.constexpr):
    """Returns a pointer to a tensor's first element."""
    pointer = tl.load(addresses + place).to(tl.pointer_type(tl.float32))
    if IS_ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _directions_kernel(
    addresses, sizes, first_blocks, tensor_of_block, num_tensors, scalars, squares_of_blocks,
    num_blocks, beta_1, one_minus_beta_1, beta_2, one_minus_beta_2, eps, weight_decay,
    IS_ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, elements, size = _locate(sizes, first_blocks, tensor_of_block, IS_ALIGNED, BLOCK)
    w_start = _start(addresses, tensor, IS_ALIGNED)
    g_start = _start(addresses, num_tensors + tensor, IS_ALIGNED)
    m_start = _start(addresses, 2 * num_tensors + tensor, IS_ALIGNED)
    v_start = _start(addresses, 3 * num_tensors + tensor, IS_ALIGNED)
    factor = tl.load(scalars)
    is_finite = tl.load(scalars + 1)
    m_correction = tl.load(scalars + 2)
    v_correction = tl.load(scalars + 3)
    # Reads and writes nothing where the update is skipped.
    is_inside = elements < size * is_finite.to(tl.int64)

    w = tl.load(w_start + elements, mask=is_inside, other=0.0)
    g = tl.load(g_start + elements, mask=is_inside, other=0.0) * factor
    m = tl.load(m_start + elements, mask=is_inside, other=0.0)
    v = tl.load(v_start + elements, mask=is_inside, other=0.0)
    m = beta_1 * m + one_minus_beta_1 * g
    v = beta_2 * v + one_minus_beta_2 * g * g
    direction = (m / m_correction) / (tl.sqrt(v / v_correction) + eps) + weight_decay * w
    tl.store(m_start + elements, m, mask=is_inside)
    tl.store(v_start + elements, v, mask=is_inside)
    tl.store(g_start + elements, direction, mask=is_inside)

    # Both are 0 behind a tensor's end.
    direction = tl.where(is_inside, direction, 0.0)
    block = tl.program_id(0)
    tl.store(squares_of_blocks + block, tl.sum(w * w, 0))
    tl.store(squares_of_blocks + num_blocks + block, tl.sum(direction * direction, 0))


@triton.jit
def _sum_kernel(
    squares_of_blocks, first_blocks, squares, num_blocks, num_tensors, BLOCK: tl.constexpr
):
    """Adds up the blocks of one tensor, always in the same order. Grid: T x 2."""
    tensor, which = tl.program_id(0), tl.program_id(1)
    last = tl.load(first_blocks + tensor + 1)
    total = tl.zeros([BLOCK], tl.float32)
    first = tl.load(first_blocks + tensor)
    while first < last:
        blocks = first + tl.arange(0, BLOCK)
        total += tl.load(
            squares_of_blocks + which * num_blocks + blocks, mask=blocks < last, other=0.0
        )
        first += BLOCK
    tl.store(squares + which * num_tensors + tensor, tl.sum(total, 0))


@triton.jit
def _subtract_kernel(
    addresses, sizes, first_blocks, tensor_of_block, num_tensors, scales,
    IS_ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, elements, size = _locate(sizes, first_blocks, tensor_of_block, IS_ALIGNED, BLOCK)
    w_start = _start(addresses, tensor, IS_ALIGNED)
    u_start = _start(addresses, num_tensors + tensor, IS_ALIGNED)
    scale = tl.load(scales + tensor)
    # A skipped update's directions may be anything; 0 * infinity would not be 0.
    is_inside = elements < size * (scale != 0).to(tl.int64)
    w = tl.load(w_start + elements, mask=is_inside, other=0.0)
    u = tl.load(u_start + elements, mask=is_inside, other=0.0)
    tl.store(w_start + elements, w - scale * u, mask=is_inside)
