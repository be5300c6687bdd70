"""DALI's index files, one for each TFRecord file: paired by name, built if missing, checked line by
line.

All files together count as one long string of bytes and of records. Of the indexes only the byte at
which each chunk of records begins is kept (20 MB for MLPerf's 157 million records, whose indexes
are 3 GB of text): the records of a chunk are found from their own headers when it is read.
"""

import concurrent.futures
import os
from typing import NamedTuple

import numpy as np

from bert.common.files import DataError, make_parent_folder, raise_if_any
from bert.common.kernels import kernel
from bert.examples.tfrecord import FRAME_BYTES, TFRecordFile, write_index
from bert.loader.shuffle import records_per_chunk
from bert.loader.source import find_record, fingerprint_of

_READ_BYTES = 1 << 22
_NEWLINE, _SPACE, _ZERO = b"\n 0"
_MAX_DIGITS = 18  # below 2**63
_REPAIR = (
    "make it again: python3 make_idx.py --tfrecord_train=... --tfrecord_eval=... --output_idx=..."
)


class RecordIndex(NamedTuple):
    """F files that hold N records in C chunks of `chunk_records` (the last may be shorter)."""

    paths: list
    first_bytes: np.ndarray  # int64 [F + 1], where each file begins in the string of all
    first_records: np.ndarray  # int64 [F + 1], likewise in records
    last_records: np.ndarray  # int64 [F], byte offset of each file's last record in the file
    chunk_records: int
    anchors: np.ndarray  # int64 [C + 1], bytes in the string of all

    @property
    def num_records(self) -> int:
        return int(self.first_records[-1])

    def fingerprint(self) -> dict[str, int | str]:
        """See `Source`."""
        return fingerprint_of(
            self.paths, np.diff(self.first_bytes).tolist(), np.diff(self.first_records).tolist()
        )

    def file_of_record(self, record: int) -> tuple[str, int]:
        """Returns (path, number of the record in that file)."""
        return find_record(self.paths, self.first_records, record)

    def sample_offsets(self, number: int) -> list[int]:
        """Returns the offsets of up to three records of file `number`: the first, the last, one in
        the middle.
        """
        start, end = self.first_bytes[number : number + 2]
        middle = self.anchors[np.searchsorted(self.anchors, (start + end) // 2)] - start
        offsets = {0, int(self.last_records[number])}
        return sorted(offsets | {int(middle)} if middle < end - start else offsets)


def pair_by_name(paths: list[str], index_paths: list[str]) -> list[tuple[str, str]]:
    """Returns [(TFRecord path, index path)] in the order of the files; DataError names what has no
    partner.
    """
    if _are_indexes(paths) and index_paths and not _are_indexes(index_paths):
        raise DataError(
            f"{paths[0]} is an index and {index_paths[0]} is none: the two lists are swapped; "
            "give the TFRecord files first, then their indexes"
        )
    indexes = {_file_name(path): path for path in index_paths}
    names = [os.path.basename(path) for path in paths]
    problems = [
        f"{path}: no index {name}.idx among the indexes; "
        f"{_REPAIR}, or let the loader do it: build_missing_indexes=True"
        for path, name in zip(paths, names)
        if name not in indexes
    ]
    problems += [
        f"{path}: the index of no file among the TFRecords; "
        "bring the file back, or leave its index out too"
        for name, path in indexes.items()
        if name not in names
    ]
    if len(set(names)) < len(names) or len(indexes) < len(index_paths):
        problems.append(
            "two files of the same name: indexes are told apart by name; "
            "rename one, or give it once"
        )
    if not paths:
        problems.append("no TFRecord files were given")
    raise_if_any(problems)
    return [(path, indexes[name]) for path, name in zip(paths, names)]


def _are_indexes(paths):
    return any(path.endswith(".idx") for path in paths)


def _file_name(index_path):
    return os.path.basename(index_path).removesuffix(".idx")


def build_missing_indexes(
    paths: list[str], index_paths: list[str], first: int, num_threads: int
) -> list[str]:
    """Writes the indexes that are named but absent, or that no name is given for; returns the names
    of all.

    Those without a name go beside the given indexes, or beside their files if none is given.
    Processes that do this at the same time should differ in `first`, the number of the file to
    begin with: each index is written atomically, and one that has appeared in the meantime is not
    written again.
    """
    folder = os.path.dirname(index_paths[0]) if index_paths else None
    named = {_file_name(path) for path in index_paths}
    unnamed = [path for path in paths if os.path.basename(path) not in named]
    index_paths = [*index_paths] + [
        os.path.join(
            os.path.dirname(path) if folder is None else folder, f"{os.path.basename(path)}.idx"
        )
        for path in unnamed
    ]
    pairs = [
        (path, index_path)
        for path, index_path in pair_by_name(paths, index_paths)
        if not os.path.exists(index_path)
    ]
    first %= max(1, len(pairs))
    _in_parallel(_build_index, pairs[first:] + pairs[:first], num_threads)
    return index_paths


def _build_index(path, index_path):
    if not os.path.exists(index_path):
        make_parent_folder(index_path)
        write_index(path, index_path)


def read_indexes(pairs: list[tuple[str, str]], num_threads: int) -> RecordIndex:
    """Reads and checks every line of all indexes; returns a RecordIndex.

    Each line must follow from the one before it, the first begin at byte 0, the last end where the
    file ends. DataError names every index that is not so. 3 GB of text take 8 s of CPU.
    """
    paths = [path for path, _ in pairs]
    counts = _in_parallel(_count_lines, [(index_path,) for _, index_path in pairs], num_threads)
    first_bytes, first_records = _sums([os.path.getsize(path) for path in paths]), _sums(counts)
    chunk_records = records_per_chunk(int(first_records[-1]))
    anchors = np.zeros(-(-int(first_records[-1]) // chunk_records) + 1, np.int64)
    anchors[-1] = first_bytes[-1]
    jobs = [
        (*pair, int(first_bytes[n]), int(first_records[n]), counts[n], chunk_records, anchors)
        for n, pair in enumerate(pairs)
    ]
    last_records = np.array(_in_parallel(_read_index, jobs, num_threads), np.int64)
    return RecordIndex(paths, first_bytes, first_records, last_records, chunk_records, anchors)


def _count_lines(index_path):
    with open(index_path, "rb", buffering=0) as file:
        return sum(
            np.count_nonzero(np.frombuffer(block, np.uint8) == _NEWLINE)
            for block in iter(lambda: file.read(_READ_BYTES), b"")
        )


def _read_index(path, index_path, file_start, first_record, num_records, chunk_records, anchors):
    """Checks one index and fills its part of `anchors`; returns the offset of the file's last
    record.
    """
    size, progress, end_record = (
        os.path.getsize(path),
        np.array([first_record, 0, 0]),
        first_record + num_records,
    )
    if size == 0:
        raise DataError(f"{path}: 0 bytes, expected TFRecords; make it again, or leave it out")
    with open(index_path, "rb", buffering=0) as file:
        rest = b""
        while block := file.read(_READ_BYTES):
            block = rest + block
            text = np.frombuffer(block, np.uint8)[: block.rfind(b"\n") + 1]
            place = _scan_index(text, progress, end_record, chunk_records, anchors, file_start)
            if place < len(text):
                line = block[place : block.index(b"\n", place)][:60].decode(errors="replace")
                raise DataError(
                    f"{index_path}: not an index (a line `offset size` for each record, without "
                    f"gaps): line {progress[0] - first_record + 1} is {line!r}, "
                    f"expected `{progress[1]} <size>`; {_REPAIR}"
                )
            rest = block[len(text) :]
    if rest or num_records == 0:
        raise DataError(f"{index_path}: not an index: it is empty or ends inside a line; {_REPAIR}")
    if progress[1] != size:
        raise DataError(
            f"{index_path}: its last record ends at byte {progress[1]}, "
            f"but {path} has {size} bytes; {_REPAIR}"
        )
    return int(progress[2])


@kernel
def _scan_index(text, progress, end_record, chunk_records, anchors, file_start):
    """Checks whole lines of an index, and keeps where each chunk begins.

    text: uint8 [n]. progress: int64 [3], updated: number of the next record in all files, the byte
    at which it must begin in its file, the byte at which the record before it began. anchors:
    int64, a place for each chunk of `chunk_records` records of all files, gets file_start plus the
    offset of the chunk's first record.

    Returns n if every line follows from the one before it and the last is of a record below
    `end_record`; otherwise the place in `text` of the first line that does not.
    """
    record, expected, last = progress
    position, size_of_text = 0, len(text)
    until_chunk = -record % chunk_records
    numbers = (0, 0)
    while position < size_of_text and record < end_record:
        line = position
        for separator in (_SPACE, _NEWLINE):
            value, start = 0, position
            while position < size_of_text and _ZERO <= text[position] < _ZERO + 10:
                value = 10 * value + (text[position] - _ZERO)
                position += 1
            if (
                not 0 < position - start <= _MAX_DIGITS
                or position == size_of_text
                or text[position] != separator
            ):
                position = -1
                break
            position += 1
            numbers = (numbers[1], value)
        if position < 0 or numbers[0] != expected or numbers[1] < FRAME_BYTES:
            position = line
            break
        if until_chunk == 0:
            anchors[record // chunk_records] = file_start + expected
            until_chunk = chunk_records
        until_chunk -= 1
        last = expected
        expected += numbers[1]
        record += 1
    progress[0], progress[1], progress[2] = record, expected, last
    return position


def _sums(values):
    """Returns 0 and the running sums of `values`, int64."""
    return np.concatenate(([0], np.cumsum(values, dtype=np.int64)))


def _in_parallel(function, jobs, num_threads):
    """Returns function(*job) of each job; one DataError with the problems of all."""
    results, problems = [], []
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for future in [pool.submit(function, *job) for job in jobs]:
            try:
                results.append(future.result())
            except (DataError, OSError) as error:
                problems.append(str(error))
    raise_if_any(problems)
    return results


def read_samples(index: RecordIndex, num_threads: int) -> list[tuple[bytes, str]]:
    """Returns [(payload, place)] of up to three records of each file, their checksums verified.

    `place` names file and byte. DataError names each file in which a record does not begin where
    its index says, or is damaged.
    """
    groups = _in_parallel(
        _read_samples, [(index, number) for number in range(len(index.paths))], num_threads
    )
    return [sample for group in groups for sample in group]


def _read_samples(index, number):
    with TFRecordFile(index.paths[number]) as file:
        return [
            (file.payload(*next(file.extents(offset))), f"{file.path}: byte {offset}")
            for offset in index.sample_offsets(number)
        ]
