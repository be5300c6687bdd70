"""TFRecord framing and its index: where records lie in a file, read and written, with checksums.

A record is: length of the payload (uint64, little-endian), masked CRC32C of these 8 bytes (uint32),
payload, masked CRC32C of the payload (uint32). Source: TensorFlow, `core/lib/io/record_writer.h`.
"""

import contextlib
import os
import struct
from collections.abc import Iterator

import google_crc32c

from bert.common.file_formats import detect_other_format
from bert.common.files import DataError, atomic_writer

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES, CHECKSUM_BYTES = _HEADER.size, _CHECKSUM.size
FRAME_BYTES = HEADER_BYTES + CHECKSUM_BYTES
MASK_DELTA = 0xA282EAD8


def masked_crc32c(data: bytes) -> int:
    """CRC32C of `data`, rotated right by 15 bits plus a constant (TensorFlow,
    `core/lib/hash/crc32c.h`).
    """
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def header_bytes(length: int) -> bytes:
    """Returns what stands before a payload of `length` bytes."""
    return _HEADER.pack(length, masked_crc32c(struct.pack("<Q", length)))


def checksum_bytes(payload: bytes) -> bytes:
    """Returns what stands behind `payload` (bytes)."""
    return _CHECKSUM.pack(masked_crc32c(payload))


def frame(payload: bytes) -> bytes:
    """Returns the record (bytes) that holds `payload` (bytes)."""
    return header_bytes(len(payload)) + payload + checksum_bytes(payload)


class TFRecordFile:
    """A TFRecord file for looking at record by record, from any offset, in constant memory.

    Use as a context manager. Raises DataError for an empty file, OSError for one that cannot be
    read.
    """

    def __init__(self, path: str):
        self.path = path
        self._file = open(path, "rb", buffering=0)
        # By header: records of one length have the same, whose checksum is compared once
        self._sizes: dict[bytes, int] = {}
        self.size = os.fstat(self._file.fileno()).st_size
        if self.size == 0:
            self._file.close()
            raise DataError(f"{path}: 0 bytes, expected TFRecords; delete it or make it again")

    def __enter__(self) -> "TFRecordFile":
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def read(self, size: int, offset: int) -> bytes:
        """Returns `size` bytes from byte `offset` on, fewer at the end of the file."""
        return os.pread(self._file.fileno(), size, offset)

    def extents(self, offset: int = 0) -> Iterator[tuple[int, int]]:
        """Yields (offset, size) of each record from byte `offset` on, frame included, from the
        headers alone.

        Raises DataError with the byte offset where a length checksum is wrong or the file ends
        inside a record.
        """
        while offset < self.size:
            size = self._record_size(self.read(_HEADER.size, offset), offset)
            yield offset, size
            offset += size

    def payload(self, offset: int, size: int) -> bytes:
        """Returns the payload (bytes) of the record at `offset`; DataError if its checksum is
        wrong.
        """
        record = self.read(size, offset)
        payload = record[_HEADER.size : -_CHECKSUM.size]
        (checksum,) = _CHECKSUM.unpack(record[-_CHECKSUM.size :])
        if masked_crc32c(payload) != checksum:
            raise self._error(offset, "the record's data does not have its checksum")
        return payload

    def _record_size(self, header, offset):
        """The size of the record at `offset` by its header (bytes), frame included; DataError if it
        cannot be.
        """
        size = self._sizes.get(header)
        if size is None:
            if len(header) < _HEADER.size:
                raise self._error(
                    offset,
                    f"the file ends {len(header)} bytes into a record header of {_HEADER.size}",
                )
            length, checksum = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                raise self._error(offset, "no record starts here: the length's checksum is wrong")
            size = self._sizes[header] = FRAME_BYTES + length
        if self.size - offset < size:
            raise self._error(
                offset, f"the file ends {self.size - offset} bytes into a record of {size}"
            )
        return size

    def _error(self, offset, problem):
        kind = detect_other_format(self.read(64, 0)) if offset == 0 else None
        what = f"this is {kind}" if kind else "the file is damaged or no TFRecord, make it again"
        return DataError(f"{self.path}: byte {offset}: {problem}; {what}")


def write_index(tfrecord_path: str, index_path: str) -> int:
    """Writes DALI's index of a TFRecord file, one line `offset size` a record; returns the number
    of records.

    The lines are those of DALI's own `tfrecord2idx`. If the file is not whole, `index_path` is
    removed, also an older one, which would otherwise be taken for the index of this file.
    """
    count = 0
    try:
        with TFRecordFile(tfrecord_path) as records, atomic_writer(index_path) as index:
            for count, (offset, size) in enumerate(records.extents(), start=1):
                index.write(b"%d %d\n" % (offset, size))
    except DataError:
        with contextlib.suppress(FileNotFoundError):
            os.remove(index_path)
        raise
    return count
