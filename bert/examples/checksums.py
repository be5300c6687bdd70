"""CRC32C of many TFRecords at once, by the processor's own instruction where it has one.

Kernels compiled by numba. For one record, bert/examples/tfrecord.py's `masked_crc32c` is enough,
and says the same. All kernels stand in this file because numba's cache notices changes in a
kernel's own file only.
"""

import llvmlite.binding
import llvmlite.ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from bert.common.kernels import at_every_offset, inlined_kernel, kernel
from bert.examples.tfrecord import CHECKSUM_BYTES, FRAME_BYTES, HEADER_BYTES, MASK_DELTA

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_HAS_INSTRUCTION = llvmlite.binding.get_host_cpu_features().get("sse4.2", False)


def seal_records(buffer, ends):
    """Fills in header and checksum of the records in a buffer (uint8 [N]), the first at 0, record k
    up to ends[k] (int64).
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


def check_records(buffer):
    """Walks over the records in a buffer (uint8 [N]), the first at 0, up to one that is not whole
    or no record.

    Returns where each payload begins and ends (int64 [K] both), and whether it has its checksum
    (bool [K]).
    """
    most = len(buffer) // FRAME_BYTES
    starts, ends, is_right = (
        np.empty(most, np.int64),
        np.empty(most, np.int64),
        np.empty(most, np.bool_),
    )
    count = _check_records(buffer, at_every_offset(buffer, np.uint64), starts, ends, is_right)
    return starts[:count], ends[:count], is_right[:count]


@kernel
def _check_records(buffer, eights, starts, ends, is_right):
    at, size, count = np.uint64(0), np.uint64(len(buffer)), 0
    while size - at >= np.uint64(FRAME_BYTES):
        length, first = eights[at], at + np.uint64(HEADER_BYTES)
        if length > size - at - np.uint64(FRAME_BYTES) or not _has_checksum(
            buffer, eights, at, at + np.uint64(8)
        ):
            break
        starts[count], ends[count] = first, first + length
        is_right[count] = _has_checksum(buffer, eights, first, first + length)
        at = first + length + np.uint64(CHECKSUM_BYTES)
        count += 1
    return count


def have_checksums(buffer, starts, ends):
    """Whether each payload buffer[starts[k]:ends[k]] has its checksum behind it: bool [K]. buffer:
    uint8 [N]; int64 [K].
    """
    is_right = np.empty(len(starts), np.bool_)
    _have_checksums(buffer, at_every_offset(buffer, np.uint64), starts, ends, is_right)
    return is_right


@kernel
def _have_checksums(buffer, eights, starts, ends, is_right):
    for k in range(len(starts)):
        is_right[k] = _has_checksum(buffer, eights, np.uint64(starts[k]), np.uint64(ends[k]))


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
        crc = _add_8_bits(crc, np.uint64(buffer[start]))
        start += np.uint64(1)
    return np.uint32(crc) ^ np.uint32(0xFFFFFFFF)


# --------------------------------------------------------------------------------------------------
# The remainder of 8 bytes, or of one, after `crc`


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


@inlined_kernel
def _add_8_bits(crc, bits):
    crc ^= bits
    for _ in range(8):
        crc = crc >> np.uint64(1) ^ (np.uint64(0) - (crc & np.uint64(1))) & np.uint64(_POLYNOMIAL)
    return crc


def _tables():
    """uint32 [8, 256]: the remainder of byte b with k bytes of zeros behind it.

    Source: Kounavis and Berry 2008.
    """
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        tables[0, byte] = _add_8_bits.py_func(np.uint64(0), np.uint64(byte))
    for k in range(1, 8):
        tables[k] = tables[k - 1] >> 8 ^ tables[0][tables[k - 1] & 0xFF]
    return tables


_TABLES = None if _HAS_INSTRUCTION else _tables()


@kernel
def _add_by_tables(crc, eight):
    eight ^= crc
    crc = np.uint64(0)
    for k in range(8):
        crc ^= np.uint64(_TABLES[7 - k, eight >> np.uint64(8 * k) & np.uint64(0xFF)])
    return crc


_add_8_bytes = _crc32_instruction if _HAS_INSTRUCTION else _add_by_tables
