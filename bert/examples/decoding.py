"""Serialized `tf.train.Example` messages in memory -> batches of arrays, checked value by value.

The kernel takes what writers of TFRecords make: packed lists, the features in any order. A record
of any other form, or with a value that is not allowed, is left to the readable decoder in
bert/examples/example.py, which reads everything that protobuf allows, and names what is wrong.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bert.common.files import DataError
from bert.common.kernels import inlined_kernel, kernel
from bert.examples.batch import INTEGER_FEATURES, BatchLayout
from bert.examples.example import (
    FEATURES,
    FLOAT_LIST,
    INT64_LIST,
    MAX_VALUE,
    check_values,
    decode_example,
)
from bert.examples.records import have_checksums

_NAMES = [feature.name for feature in FEATURES]
_NAME_LENGTHS = np.array([len(name) for name in _NAMES])
_NAME_STARTS = np.concatenate(([0], np.cumsum(_NAME_LENGTHS)))
_NAME_LETTERS = np.frombuffer("".join(_NAMES).encode(), np.uint8)
_WEIGHTS = _NAMES.index("masked_lm_weights")
_POSITIONS = _NAMES.index("masked_lm_positions")
_IDS = np.array([name in ("input_ids", "masked_lm_ids") for name in _NAMES])
_FIELD_1, _FIELD_2 = 1 << 3 | 2, 2 << 3 | 2  # key bytes of length-delimited fields
_INT64_KEY, _FLOAT_KEY = INT64_LIST << 3 | 2, FLOAT_LIST << 3 | 2


class Records(NamedTuple):
    """K records in memory."""

    numbers: np.ndarray  # int64 [K], for errors
    data: np.ndarray  # uint8 [n]
    starts: np.ndarray  # int64 [K], places in `data` of the payloads
    ends: np.ndarray  # int64 [K]


class Decoder:
    """Decodes records of one shape. Holds no state: threads may share it.

    Args:
      lengths: {feature name: number of values}; a record of other lengths is refused.
      vocab_size: token ids must be below it; None: any.
    """

    def __init__(self, lengths: dict[str, int], vocab_size: int | None = None):
        self.lengths, self.vocab_size = lengths, vocab_size
        self.layout = BatchLayout(lengths)
        self._limits = np.full(len(_NAMES), MAX_VALUE)
        self._limits[_IDS] = vocab_size or MAX_VALUE
        self._limits[_POSITIONS] = lengths["input_ids"]

    def decode(
        self, pieces: list[tuple[Records, slice]], place: Callable[[int], str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns a batch as the two arrays of a BatchLayout.

        pieces: list of (Records, slice of their rows), B rows together.
        place: function of a record's number to words, for errors. Raises DataError for a record
        whose data does not have its checksum, or that is no example of this shape.
        """
        count = sum(rows.stop - rows.start for _, rows in pieces)
        integers, weights = self.layout.empty(count)
        batch, first = self.layout.split(integers, weights), 0
        for records, rows in pieces:
            self._check_checksums(records, rows, place)
            end = first + rows.stop - rows.start
            self._decode_piece(
                records, rows, {name: column[first:end] for name, column in batch.items()}, place
            )
            first = end
        return integers, weights

    def _decode_piece(self, records, rows, batch, place):
        """Fills `batch` ({feature name: view [K, length]}) with K rows of Records."""
        starts, ends = records.starts[rows], records.ends[rows]
        for row in self.fill_rows(records.data, starts, ends, batch):
            example = self.decode_one(
                records.data[starts[row] : ends[row]].tobytes(), place(records.numbers[rows][row])
            )
            for name, values in example.items():
                batch[name][row] = values

    def fill_rows(
        self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray, batch: dict[str, np.ndarray]
    ) -> Iterator[int]:
        """Decodes the message data[starts[row] : ends[row]] into each row of a batch; yields the
        row of each that the kernel cannot decode, for the caller to fill.

        data: uint8 [n]. starts, ends: int64 [B]. batch: {feature name: array [B or more, length]},
        float32 the weights, the others of one type of integers that holds what is below MAX_VALUE.
        """
        columns, weights = (
            tuple(batch[name] for name in INTEGER_FEATURES),
            batch["masked_lm_weights"],
        )
        row = 0
        while (row := decode_rows(data, starts, ends, row, self._limits, columns, weights)) < len(
            starts
        ):
            yield row
            row += 1

    def decode_one(self, payload: bytes, place: str) -> dict[str, np.ndarray]:
        """The readable decoder, with the same checks: payload (bytes) -> {feature name: array
        [length]}.
        """
        example = decode_example(payload, place)
        check_values(example, self.lengths, self.vocab_size, place)
        return example

    def _check_checksums(self, records, rows, place):
        for row in np.flatnonzero(
            ~have_checksums(records.data, records.starts[rows], records.ends[rows])
        )[:1]:
            raise DataError(
                f"{place(records.numbers[rows][row])}: the record's data does not have its "
                "checksum; the file is damaged, make it again with create_pretraining_data.py"
            )


# --------------------------------------------------------------------------------------------------
# Kernels. Messages nest as Example { Features { entry { name, Feature { list { packed values } } }
# ... } }.


@kernel
def decode_rows(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    first_row: int,
    limits: np.ndarray,
    columns: tuple[np.ndarray, ...],
    weights: np.ndarray,
) -> int:
    """Decodes the messages data[starts[row] : ends[row]] from `first_row` on; returns the first
    that it cannot, or B.

    data: uint8 [n]. starts, ends: int64 [B]. limits: int64 [7], what the values of each feature
    must be below. columns: a tuple of int32 or int64 [B or more, length] for each feature but the
    weights, in the order of FEATURES. weights: float32 [B or more, P].
    """
    for row in range(first_row, len(starts)):
        end = ends[row]
        position = _enter(data, starts[row], end, end, _FIELD_1)
        seen = 0
        while 0 <= position < end:
            if data[position] != _FIELD_1:
                break
            position, size = _varint(data, position + 1, end)
            entry_end = position + size
            if position < 0 or entry_end > end:
                break
            feature, position = _name(data, position, entry_end)
            if feature < 0 or seen >> feature & 1:
                break
            position = _enter(data, position, entry_end, entry_end, _FIELD_2)
            key = _FLOAT_KEY if feature == _WEIGHTS else _INT64_KEY
            position = _enter(data, position, entry_end, entry_end, key)
            position = _enter(data, position, entry_end, entry_end, _FIELD_1)
            if position < 0:
                break
            if feature == _WEIGHTS:
                is_right = _copy_floats(data[position:entry_end], weights[row])
            else:
                column = columns[feature - (feature > _WEIGHTS)]
                is_right = _decode_integers(data[position:entry_end], column[row], limits[feature])
            if not is_right:
                break
            seen |= 1 << feature
            position = entry_end
        if position != end or seen != (1 << len(limits)) - 1:
            return row
    return len(starts)


@inlined_kernel
def _varint(data, position, end):
    """Returns (place behind the varint, its value); (-1, 0) if it is not whole or has more than 5
    bytes.
    """
    value, shift = 0, 0
    while position < end and shift < 35:
        octet = np.int64(data[position])
        value |= (octet & 0x7F) << shift
        position += 1
        if octet < 0x80:
            return position, value
        shift += 7
    return -1, 0


@inlined_kernel
def _enter(data, position, end, field_end, key):
    """Returns where the contents of the field `key` at `position` begin, which must reach to
    `field_end`; otherwise -1.
    """
    if not 0 <= position < end or data[position] != key:
        return -1
    position, size = _varint(data, position + 1, end)
    return position if position >= 0 and position + size == field_end else -1


@kernel
def _name(data, position, end):
    """Returns (number of the feature whose name stands at `position`, the place behind it); (-1,
    -1) for another name.
    """
    if position + 2 > end or data[position] != _FIELD_1 or position + 2 + data[position + 1] > end:
        return -1, -1
    length = np.int64(data[position + 1])
    position += 2
    for feature in range(len(_NAME_LENGTHS)):
        if _NAME_LENGTHS[feature] == length:
            start, same = _NAME_STARTS[feature], 0
            while same < length and _NAME_LETTERS[start + same] == data[position + same]:
                same += 1
            if same == length:
                return feature, position + length
    return -1, -1


@kernel
def _decode_integers(data, values, limit):
    """Packed varints (uint8 [n]) -> values (int64 [length]); False unless they are `length` numbers
    from 0 to below `limit`.
    """
    length, size = np.uint64(len(values)), np.uint64(len(data))
    # The usual case of flags and short positions, which the compiler turns into vectors.
    if size == length and limit > 0x7F:
        high_bits = np.uint8(0)
        for i in range(length):
            high_bits |= data[i]
            values[i] = data[i]
        return high_bits < 0x80
    position, largest = np.uint64(0), 0
    for i in range(length):
        value, shift = 0, 0
        while True:
            if position == size or shift == 35:
                return False
            octet = np.int64(data[position])
            position += np.uint64(1)
            value |= (octet & 0x7F) << shift
            if octet < 0x80:
                break
            shift += 7
        values[i] = value
        largest = max(largest, value)
    return position == size and largest < limit


@kernel
def _copy_floats(data, values):
    """Packed little-endian floats (uint8 [4 * length]) -> values (float32 [length]); False for
    another size.
    """
    if len(data) != 4 * len(values):
        return False
    octets = values.view(np.uint8)
    for i in range(len(data)):
        octets[i] = data[i]
    return True
