"""Reads any records out of many TFRecord files, in few and large steps."""

import collections
import itertools
import os
from typing import IO

import numpy as np

from bert.common.files import DataError
from bert.examples.decoding import Records
from bert.examples.records import find_payloads
from bert.examples.tfrecord import CHECKSUM_BYTES, HEADER_BYTES, TFRecordFile
from bert.loader.index import RecordIndex

_MAX_OPEN_FILES = 128  # of the 1,024 that a process may usually have


class RecordReader:
    """Reads records by number, in whole chunks. For one thread at a time.

    `pread` instead of a memory map: an error of the disk, or a file cut short, becomes an exception
    and not a SIGBUS.
    """

    def __init__(self, index: RecordIndex):
        self._index = index
        # By path, the one used last at the end.
        self._files: collections.OrderedDict[str, IO[bytes]] = collections.OrderedDict()

    def read(self, numbers: np.ndarray) -> Records:
        """Returns Records for the record numbers (int64 [K], no two the same).

        DataError names file and byte where the chunks are not made of whole records.
        """
        chunk_records, anchors = self._index.chunk_records, self._index.anchors
        chunks, inverse = np.unique(numbers // chunk_records, return_inverse=True)
        chunk_starts = np.concatenate(([0], np.cumsum(anchors[chunks + 1] - anchors[chunks])))
        data = np.empty(chunk_starts[-1], np.uint8)
        self._read_runs(chunks, memoryview(data))
        starts, ends = find_payloads(data)
        if (  # not the records that the index was made of
            len(starts) != self._sizes(chunks).sum()
            or (starts[::chunk_records] - HEADER_BYTES != chunk_starts[:-1]).any()
            or ends[-1] + CHECKSUM_BYTES != chunk_starts[-1]
        ):
            raise self._damage(chunks)
        wanted = inverse * chunk_records + numbers % chunk_records
        return Records(numbers, data, starts[wanted], ends[wanted])

    def _sizes(self, chunks):
        """Returns the number of records in each chunk (int64 [C])."""
        chunk_records = self._index.chunk_records
        return np.minimum(chunk_records, self._index.num_records - chunks * chunk_records)

    def _read_runs(self, chunks, data):
        """Reads ascending chunks into `data`; neighbours in one step.

        The system is told of all steps before the first, so that it can read ahead.
        """
        first_of_run = np.flatnonzero(np.diff(chunks, prepend=-2) > 1)
        last_of_run = np.append(first_of_run[1:], len(chunks)) - 1
        starts, ends = (
            self._index.anchors[chunks[first_of_run]],
            self._index.anchors[chunks[last_of_run] + 1],
        )
        pieces = [
            piece for run in zip(starts.tolist(), ends.tolist()) for piece in self._pieces(*run)
        ]
        for path, offset, size in pieces:
            os.posix_fadvise(self._open(path), offset, size, os.POSIX_FADV_WILLNEED)
        for path, offset, size in pieces:
            while size > 0:
                count = os.preadv(self._open(path), [data[:size]], offset)
                if count == 0:
                    raise DataError(
                        f"{path}: ends at byte {offset}, shorter than when the loader was made; "
                        "make it again"
                    )
                data, offset, size = data[count:], offset + count, size - count

    def _pieces(self, start, end):
        """Yields (path, offset, size) of the files that bytes start .. end of the string of all
        files lie in.
        """
        number = int(np.searchsorted(self._index.first_bytes, start, side="right")) - 1
        while start < end:
            first, after = self._index.first_bytes[number : number + 2].tolist()
            size = min(end, after) - start
            yield self._index.paths[number], start - first, size
            start, number = start + size, number + 1

    def _open(self, path):
        """Returns the file descriptor of a file, open among those used last."""
        if path not in self._files:
            if len(self._files) == _MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = open(path, "rb", buffering=0)
        self._files.move_to_end(path)
        return self._files[path].fileno()

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def place(self, number: int) -> str:
        """Returns where a record stands, in words for an error: file, number in the file, byte."""
        chunk, in_chunk = divmod(int(number), self._index.chunk_records)
        path, in_file = self._index.file_of_record(number)
        _, offset = next(itertools.islice(self._walk(chunk), in_chunk, None))
        return f"{path}: record {in_file} at byte {offset}"

    def _damage(self, chunks):
        """The error that stands in one of the chunks."""
        try:
            for chunk, size in zip(chunks, self._sizes(chunks)):
                records = list(self._walk(chunk))
                if len(records) != size:
                    break
        except DataError as error:
            return error
        path, offset = records[-1]
        return DataError(
            f"{path}: about byte {offset}: the file has changed since the loader was made; "
            "start again"
        )

    def _walk(self, chunk):
        """Yields (path, byte) of each record of a chunk."""
        for path, offset, size in self._pieces(*self._index.anchors[chunk : chunk + 2].tolist()):
            with TFRecordFile(path) as file:
                for start, _ in itertools.takewhile(
                    lambda extent: extent[0] < offset + size, file.extents(offset)
                ):
                    yield path, start
