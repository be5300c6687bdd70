"""A file of examples, TFRecord or instances, told apart by its first bytes: what tools ask of
either.
"""

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from bert.common.files import raise_if_any
from bert.examples.decoding import Decoder, Records
from bert.examples.example import decode_example, feature_lengths
from bert.examples.instance_file import InstanceFile, is_instance_file
from bert.examples.records import read_blocks
from bert.examples.tfrecord import TFRecordFile

Example = dict[str, np.ndarray]  # {feature name: array [length]}, or of a batch [B, length]
_BATCH_SIZE = 256


class ExampleFile(Protocol):
    """Attributes: `path`; `lengths`, {feature name: number of values}, of the first example."""

    path: str
    lengths: dict[str, int]

    def count(self) -> int:
        """Returns the number of examples."""

    def examples(self, first: int, count: int) -> Iterator[tuple[str, Example]]:
        """Yields (place, example) of `count` examples from number `first` on, fewer at the end.

        place: file and record in words.
        """

    def batches(self, lengths: dict[str, int], vocab_size: int) -> Iterator[Example]:
        """Yields all examples as batches.

        DataError for one that is corrupt, does not have `lengths`, or has an id that is not below
        `vocab_size`.
        """


def open_examples(path: str) -> ExampleFile:
    """Returns the ExampleFile at `path`; DataError if it is neither TFRecord nor instances."""
    return _Instances(path) if is_instance_file(path) else _TFRecord(path)


class _TFRecord:
    def __init__(self, path):
        self.path = path
        _, first = next(self.examples(0, 1))
        self.lengths = feature_lengths(len(first["input_ids"]), len(first["masked_lm_positions"]))

    def count(self):
        with TFRecordFile(self.path) as file:
            return sum(1 for _ in file.extents())

    def examples(self, first, count):
        with TFRecordFile(self.path) as file:
            extents = enumerate(file.extents())
            for number, (offset, size) in itertools.islice(extents, first, first + count):
                place = f"{self.path}: record {number} at byte {offset}"
                yield place, decode_example(file.payload(offset, size), place)

    def batches(self, lengths, vocab_size):
        decoder, number = Decoder(lengths, vocab_size), 0
        with TFRecordFile(self.path) as file:
            for block in read_blocks(file):
                count = len(block.starts)
                numbers = np.arange(number, number + count)
                records = Records(numbers, block.data, block.starts, block.ends)
                arrays = decoder.decode(
                    [(records, slice(0, count))], lambda record: f"{self.path}: record {record}"
                )
                yield decoder.layout.split(*arrays)
                number += count


class _Instances:
    def __init__(self, path):
        self._file = InstanceFile(path)
        self.path, self.lengths = path, self._file.header.lengths

    def count(self):
        return self._file.num_records

    def examples(self, first, count):
        for number in range(first, min(first + count, self.count())):
            batch = self._file.batch(np.array([number]))
            yield self._file.place(number), {name: rows[0] for name, rows in batch.items()}

    def batches(self, lengths, vocab_size):
        self._file.check_contents()
        raise_if_any(self._file.problems(lengths, vocab_size))
        for first in range(0, self.count(), _BATCH_SIZE):
            yield self._file.batch(np.arange(first, min(first + _BATCH_SIZE, self.count())))
