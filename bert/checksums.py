"""CRC32C of many TFRecords at once, by the processor's own instruction where it has one.

Kernels compiled by numba. For one record, bert/tfrecord.py's `masked_crc32c` is enough, and says the same. All kernels stand in
this file because numba's cache notices changes in a kernel's own file only.
"""

import llvmlite.binding
import llvmlite.ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from bert.kernels import at_every_offset, inlined_kernel, kernel
from bert.tfrecord import CHECKSUM_BYTES, HEADER_BYTES

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_HAS_INSTRUCTION = llvmlite.binding.get_host_cpu_features().get("sse4.2", False)


def seal_records(buffer, ends):
    """Fills in header and checksum of the records in a buffer (uint8 [N]), the first at 0, record k up to ends[k] (int64)."""
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


@inlined_kernel
def _store_checksum(buffer, eights, start, end):
    """Writes the masked CRC32C of buffer[start:end] behind it."""
    crc = _crc32c(buffer, eights, start, end)
    masked = (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(0xA282EAD8)
    for k in range(np.uint64(CHECKSUM_BYTES)):
        buffer[end + k] = masked >> np.uint32(8 * k) & np.uint32(0xFF)


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


# ---------------------------------------------------------------------------------------------------------------
# The remainder of 8 bytes, or of one, after `crc`


@intrinsic
def _crc32_instruction(typing_context, crc, eight):
    """SSE 4.2's CRC32: the remainder of eight more bytes (uint64) after `crc` (uint64)."""

    def generate(context, builder, signature, arguments):
        word = llvmlite.ir.IntType(64)
        function_type = llvmlite.ir.FunctionType(word, [word, word])
        name = "llvm.x86.sse42.crc32.64.64"
        function = builder.module.globals.get(name) or llvmlite.ir.Function(builder.module, function_type, name)
        return builder.call(function, arguments)

    return types.uint64(types.uint64, types.uint64), generate


@inlined_kernel
def _add_8_bits(crc, bits):
    crc ^= bits
    for _ in range(8):
        crc = crc >> np.uint64(1) ^ (np.uint64(0) - (crc & np.uint64(1))) & np.uint64(_POLYNOMIAL)
    return crc


def _tables():
    """uint32 [8, 256]: the remainder of byte b with k bytes of zeros behind it. Source: Kounavis and Berry 2008."""
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
