"""Instance files as a source of examples, mapped into memory.

They need no index, and how long an example is is known without reading it.
"""

import concurrent.futures
import itertools
from collections.abc import Sequence

import numpy as np

from bert.common.files import DataError, raise_if_any
from bert.examples.batch import BatchLayout
from bert.examples.instance_file import InstanceFile, is_instance_file
from bert.examples.instances import InstanceBuffer, Instances, fill_batch
from bert.loader.source import find_record, fingerprint_of


def are_instance_files(paths: Sequence[str]) -> bool:
    """Whether the files are instance files; DataError names some of both kinds if they are
    mixed.
    """
    kinds: dict[bool, str] = {}
    for path in paths:
        kinds.setdefault(is_instance_file(path), path)
    if len(kinds) == 2:
        raise DataError(
            f"{kinds[True]} is an instance file, {kinds[False]} is not: TFRecord files and "
            "instance files in one data set; give one kind, each in a folder of its own"
        )
    return True in kinds


class InstanceSource:
    """Checks the headers of all files, and the contents of those from `first` on in steps of
    `step`, so that ranks can share that work; DataError with all that is wrong.

    vocab_size: token ids must be below it; None: any.
    """

    knows_lengths = True

    def __init__(
        self,
        paths: Sequence[str],
        vocab_size: int | None,
        num_threads: int,
        first: int = 0,
        step: int = 1,
    ):
        self._files, problems = [], []
        for path in paths:
            try:
                self._files.append(InstanceFile(path))
            except (DataError, OSError) as error:
                problems.append(str(error))
        raise_if_any(problems)
        header = self._files[0].header
        self._header, self.layout = header, BatchLayout(header.lengths)
        for file in self._files:
            problems += file.problems(header.lengths, vocab_size)
            if (file.header.vocabulary, file.header.special_ids) != (
                header.vocabulary, header.special_ids,
            ):  # fmt: skip
                problems.append(
                    f"{file.path}: made with another vocabulary than {self._files[0].path}; make "
                    "both with the same"
                )
        raise_if_any(problems)
        with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
            for problem in pool.map(_contents_problem, self._files[first::step]):
                problems += problem
        raise_if_any(problems)
        counts = [file.num_records for file in self._files]
        self._first_records = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self.num_records = int(self._first_records[-1])
        batch = self._files[0].batch(np.array([0]))
        self.first_example = {name: rows[0] for name, rows in batch.items()}

    def fingerprint(self) -> dict[str, int | str]:
        return fingerprint_of(
            [file.path for file in self._files],
            [file.header.tfrecord_bytes for file in self._files],
            [file.num_records for file in self._files],
        )

    def file_of_record(self, record: int) -> tuple[str, int]:
        paths = [file.path for file in self._files]
        return find_record(paths, self._first_records, record)

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the numbers of tokens (int64 [K]) of the examples `numbers` (int64 [K])."""
        lengths = np.empty(len(numbers), np.int64)
        for file, own, places in self._by_file(numbers):
            some = file.instances._replace(rows=file.instances.rows[own])
            lengths[places] = some.lengths()
        return lengths

    def _by_file(self, numbers):
        """Yields (file, numbers in it, their places in `numbers`), ascending."""
        order = np.argsort(numbers)
        ascending = numbers[order]
        bounds = np.searchsorted(ascending, self._first_records)
        for file, first_record, (start, end) in zip(
            self._files, self._first_records.tolist(), itertools.pairwise(bounds.tolist())
        ):
            if start < end:
                yield file, ascending[start:end] - first_record, order[start:end]

    def reader(self) -> "InstanceSource":
        return self

    def read(self, numbers: np.ndarray) -> Instances:
        """Copies the instances out of the files."""
        buffer = InstanceBuffer(
            len(numbers), self._header.max_seq_length, self._header.max_predictions_per_seq
        )
        places = np.empty(len(numbers), np.int64)
        done = 0
        for file, own, some in self._by_file(numbers):
            file.check_unchanged()
            file.copy_to(buffer, own)
            places[some] = np.arange(done, done + len(own))
            done += len(own)
        copied = buffer.instances()
        return copied._replace(rows=copied.rows[places])

    def decode(self, pieces: list[tuple[Instances, slice]]) -> tuple[np.ndarray, np.ndarray]:
        integers, weights = self.layout.empty(sum(rows.stop - rows.start for _, rows in pieces))
        batch, first = self.layout.split(integers, weights), 0
        for instances, rows in pieces:
            end = first + rows.stop - rows.start
            fill_batch(
                instances,
                np.arange(rows.start, rows.stop),
                self._header.special_ids,
                {name: column[first:end] for name, column in batch.items()},
            )
            first = end
        return integers, weights

    def close(self) -> None:
        pass


def _contents_problem(file):
    try:
        file.check_contents()
        return []
    except (DataError, OSError) as error:
        return [str(error)]
