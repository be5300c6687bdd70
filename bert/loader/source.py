"""Where examples come from: what the loader asks of TFRecord files and of instance files alike."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bert.examples.batch import BatchLayout


class Reader(Protocol):
    """Reads numbered records for one rank in one epoch."""

    def read(self, numbers: np.ndarray) -> Any:
        """Returns the records `numbers` (int64 [K], no two the same) as they lie in the files, for
        `decode`. For one thread at a time.
        """

    def decode(self, pieces: list[tuple[Any, slice]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns a batch as the two arrays of the source's BatchLayout. For any thread.

        pieces: (what `read` returned, slice of its rows) ..., B rows together. DataError names the
        file and record that is corrupt.
        """

    def close(self) -> None: ...


class Source(Protocol):
    """N records in files, numbered throughout.

    Attributes: `num_records`; `layout`, of all examples; `first_example`, {feature name: numpy
    array} of record 0; `knows_lengths`, whether it has `lengths_of`.
    """

    num_records: int
    layout: BatchLayout
    first_example: dict[str, np.ndarray]
    knows_lengths: bool

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns how many tokens each example has (int64 [K]), without reading it; numbers: int64
        [K].
        """

    def fingerprint(self) -> dict[str, int | str]:
        """Returns a small dict that is equal only for files of equal names, sizes and numbers of
        records; the same for TFRecord files and instance files of the same examples.
        """

    def file_of_record(self, record: int) -> tuple[str, int]:
        """Returns (path, number of the record in that file)."""

    def reader(self) -> Reader: ...


def fingerprint_of(
    paths: Sequence[str], sizes: Sequence[int], counts: Sequence[int]
) -> dict[str, int | str]:
    """Returns the `fingerprint` of files, given their sizes as TFRecords (bytes) and their numbers
    of records.
    """
    digest = hashlib.sha256()
    for path, size, count in zip(paths, sizes, counts):
        digest.update(f"{os.path.basename(path)}\0{size}\0{count}\n".encode())
    return {
        "files": len(paths), "bytes": int(sum(sizes)), "records": int(sum(counts)),
        "names_and_sizes": digest.hexdigest()[:16],
    }  # fmt: skip


def find_record(paths: Sequence[str], first_records: np.ndarray, record: int) -> tuple[str, int]:
    """Returns (path, number of the record in that file); first_records: int64 [F + 1]."""
    number = int(np.searchsorted(first_records, record, side="right")) - 1
    return paths[number], int(record - first_records[number])
