"""TFRecords in memory, many at once: where they lie, and their checksums.

Kernels compiled by numba. For one record, or a file's headers alone, see bert/examples/tfrecord.py.
CRC32C is computed by the processor's own instruction where it has one. With `google_crc32c`,
called once for each record, verify_dataset.py and create_pretraining_data.py took 21 % more CPU.
All kernels stand in this file because numba's cache notices changes in a kernel's own file only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import llvmlite.binding
import llvmlite.ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from bert.common.files import DataError
from bert.common.kernels import at_every_offset, inlined_kernel, kernel
from bert.examples.tfrecord import (
    CHECKSUM_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    MASK_DELTA,
    TFRecordFile,
)

_BLOCK_BYTES = 1 << 20  # stays in the cache between reading, checksum and what the caller does
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_HAS_INSTRUCTION = llvmlite.binding.get_host_cpu_features().get("sse4.2", False)


class Block(NamedTuple):
    """Whole records of a file, one after the other, read at once."""

    data: np.ndarray  # uint8 [bytes]: the records, and perhaps the beginning of one more
    offset: int | None  # of data[0] in the file, bytes; None: the records are in no file
    starts: np.ndarray  # int64 [K]: where each payload begins in data
    ends: np.ndarray  # int64 [K]: where it ends


def read_blocks(file: TFRecordFile) -> Iterator[Block]:
    """Yields a Block for each MB of a file. The payloads' checksums are not compared.

    Raises DataError where `TFRecordFile.extents` does, after the block of the records before that
    place.
    """
    offset, wanted = 0, _BLOCK_BYTES
    while offset < file.size:
        data = np.frombuffer(file.read(wanted, offset), np.uint8)
        starts, ends = find_payloads(data)
        if len(starts):
            yield Block(data, offset, starts, ends)
            offset, wanted = offset + int(ends[-1]) + CHECKSUM_BYTES, _BLOCK_BYTES
        else:  # a record larger than a block, or none
            _, size = next(file.extents(offset))
            if size <= wanted:
                raise DataError(
                    f"{file.path}: byte {offset}: the file changed while it was read; "
                    "read it again when nothing writes to it"
                )
            wanted = size


def find_payloads(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walks over the records in a buffer (uint8 [N]), the first at 0, up to one that is not whole
    or whose length does not have its checksum.

    Returns where each payload begins and ends (int64 [K] both).
    """
    starts, ends = np.empty((2, len(buffer) // FRAME_BYTES), np.int64)
    count = _find_payloads(buffer, at_every_offset(buffer, np.uint64), starts, ends)
    return starts[:count], ends[:count]


@kernel
def _find_payloads(buffer, eights, starts, ends):
    at, size, count = np.uint64(0), np.uint64(len(buffer)), 0
    while size - at >= np.uint64(FRAME_BYTES):
        length, first = eights[at], at + np.uint64(HEADER_BYTES)
        if length > size - at - np.uint64(FRAME_BYTES) or not _has_checksum(
            buffer, eights, at, at + np.uint64(8)
        ):
            break
        starts[count], ends[count] = first, first + length
        at = first + length + np.uint64(CHECKSUM_BYTES)
        count += 1
    return count


def have_checksums(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether each payload buffer[starts[k]:ends[k]] has its checksum behind it: bool [K].

    buffer: uint8 [N]. starts, ends: int64 [K].
    """
    is_right = np.empty(len(starts), np.bool_)
    _have_checksums(buffer, at_every_offset(buffer, np.uint64), starts, ends, is_right)
    return is_right


@kernel
def _have_checksums(buffer, eights, starts, ends, is_right):
    for k in range(len(starts)):
        is_right[k] = _has_checksum(buffer, eights, np.uint64(starts[k]), np.uint64(ends[k]))


def seal_records(buffer: np.ndarray, ends: np.ndarray) -> None:
    """Fills in header and checksum of the records in a buffer (uint8 [N]), the first at 0, record k
    up to ends[k] (int64 [K]).
    """
    _seal_records(buffer, at_every_offset(buffer, np.uint64), ends)


@kernel
def _seal_records(buffer, eights, ends):
    start = np.uint64(0)
    for k in range(len(ends)):
        end = np.uint64(ends[k])
        first, last = start + np.uint64(HEADER_BYTES), end - np.uint64(CHECKSUM_BYTES)
        eights[start] = last - first
        _store_checksum(buffer, eights, start, start + np.uint64(8))
        _store_checksum(buffer, eights, first, last)
        start = end


# --------------------------------------------------------------------------------------------------
# The checksum


@kernel
def _store_checksum(buffer, eights, start, end):
    """Writes the masked CRC32C of buffer[start:end] behind it."""
    masked = _masked_crc32c(buffer, eights, start, end)
    for k in range(np.uint64(CHECKSUM_BYTES)):
        buffer[end + k] = masked >> np.uint32(8 * k) & np.uint32(0xFF)


@kernel
def _has_checksum(buffer, eights, start, end):
    """Whether the masked CRC32C of buffer[start:end] stands behind it."""
    stored = np.uint32(0)
    for k in range(np.uint64(CHECKSUM_BYTES)):
        stored |= np.uint32(buffer[end + k]) << np.uint32(8 * k)
    return stored == _masked_crc32c(buffer, eights, start, end)


@kernel
def _masked_crc32c(buffer, eights, start, end):
    crc = _crc32c(buffer, eights, start, end)
    # In 64 bits, as numba computes it; what is over 32 is cut off.
    return np.uint32((crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(MASK_DELTA))


@kernel
def _crc32c(buffer, eights, start, end):
    crc, eight = np.uint64(0xFFFFFFFF), np.uint64(8)
    while start + eight <= end:
        crc = _add_8_bytes(crc, eights[start])
        start += eight
    while start < end:
        crc = _add_byte(crc, np.uint64(buffer[start]))
        start += np.uint64(1)
    return np.uint32(crc) ^ np.uint32(0xFFFFFFFF)


def _remainders():
    """uint64 [256]: the remainder of each byte."""
    table = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ _POLYNOMIAL, table >> 1).astype(np.uint64)
    return table


_REMAINDERS = _remainders()


@inlined_kernel
def _add_byte(crc, byte):
    """The remainder of one more byte after `crc` (uint64 both)."""
    return crc >> np.uint64(8) ^ _REMAINDERS[(crc ^ byte) & np.uint64(0xFF)]


@kernel
def _add_by_table(crc, eight):
    for k in range(8):
        crc = _add_byte(crc, eight >> np.uint64(8 * k) & np.uint64(0xFF))
    return crc


@intrinsic
def _crc32_instruction(typing_context, crc, eight):
    """SSE 4.2's CRC32: the remainder of eight more bytes (uint64) after `crc` (uint64)."""

    def generate(context, builder, signature, arguments):
        word = llvmlite.ir.IntType(64)
        function_type = llvmlite.ir.FunctionType(word, [word, word])
        name = "llvm.x86.sse42.crc32.64.64"
        function = builder.module.globals.get(name) or llvmlite.ir.Function(
            builder.module, function_type, name
        )
        return builder.call(function, arguments)

    return types.uint64(types.uint64, types.uint64), generate


_add_8_bytes = _crc32_instruction if _HAS_INSTRUCTION else _add_by_table
