"""Instances: training examples before they are padded and spelled out. An instance is a range of
tokens for A, one for B, the predictions, and the label; BERT's own code calls it so too.

Kernels compiled by numba. All of them stand in this file because numba's cache notices changes in a
kernel's own file only.
"""

from typing import NamedTuple

import numpy as np

from bert.common.kernels import inlined_kernel, kernel, prefetch
from bert.examples.batch import INTEGER_FEATURES

# One row per instance. A and B are ranges of `tokens`, after truncation; the changes are a range of
# `changes`.
INSTANCE = np.dtype(
    [
        ("a_start", "<i8"), ("b_start", "<i8"), ("first_change", "<i8"),
        ("a_length", "<u2"), ("b_length", "<u2"), ("num_changes", "<u2"), ("is_random_next", "<u2"),
    ]
)  # fmt: skip

# One row per predicted token: its position in the sequence, and what stands there instead. In
# ascending order.
CHANGE = np.dtype([("position", "<u2"), ("new_id", "<u2")])

_SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]


class Instances(NamedTuple):
    """N instances, the T token ids of their texts, and their M changes."""

    rows: np.ndarray  # INSTANCE [N]
    tokens: np.ndarray  # uint16 [T]
    changes: np.ndarray  # CHANGE [M]

    def lengths(self) -> np.ndarray:
        """Returns how many tokens each example has, [CLS] and [SEP] included: int64 [N]."""
        return self.rows["a_length"].astype(np.int64) + self.rows["b_length"] + _SPECIAL_TOKENS


class InstanceBuffer:
    """Collects instances of one or several tables in arrays of its own.

    Args:
      count: how many it can hold.
      max_seq_length, max_predictions_per_seq: none has more tokens or changes.
    """

    def __init__(self, count: int, max_seq_length: int, max_predictions_per_seq: int):
        self._limits = np.array([max_seq_length, max_predictions_per_seq])
        # Memory that is never written to costs nothing.
        self._instances = Instances(
            np.empty(count, INSTANCE),
            np.empty(count * max_seq_length, np.uint16),
            np.empty(count * max_predictions_per_seq, CHANGE),
        )
        self._used = np.zeros(3, np.int64)

    def append(self, table: Instances, numbers: np.ndarray) -> int | None:
        """Copies the instances `numbers` (int64 [K]) of a table; returns the number of one that is
        not possible, None if all are.
        """
        count = _append(table, numbers, self._limits, self._instances, self._used)
        return None if count == len(numbers) else int(numbers[count])

    def instances(self) -> Instances:
        """Returns those that were appended, as views."""
        rows, tokens, changes = (
            values[:used] for values, used in zip(self._instances, self._used.tolist())
        )
        return Instances(rows, tokens, changes)


@kernel
def _append(table, numbers, limits, buffer, used):
    """Appends rows of a table to a buffer; returns how many, up to one that is not possible."""
    for k in range(len(numbers)):
        _fetch_ahead(table, numbers[min(k + 2, len(numbers) - 1)])
        row = table.rows[numbers[k]]
        if not _is_possible(table, row, limits):
            return k
        a_length, b_length = np.int64(row.a_length), np.int64(row.b_length)
        copied = buffer.rows[used[0]]
        copied.a_start, copied.b_start, copied.first_change = used[1], used[1] + a_length, used[2]
        copied.a_length, copied.b_length = row.a_length, row.b_length
        copied.num_changes, copied.is_random_next = row.num_changes, row.is_random_next
        _copy(table.tokens, row.a_start, a_length, buffer.tokens, used[1])
        _copy(table.tokens, row.b_start, b_length, buffer.tokens, used[1] + a_length)
        for j in range(np.int64(row.num_changes)):
            buffer.changes[used[2] + j] = table.changes[row.first_change + j]
        used[0] += 1
        used[1] += a_length + b_length
        used[2] += np.int64(row.num_changes)
    return len(numbers)


@inlined_kernel
def _is_possible(table, row, limits):
    """Whether a row points into its table, is no longer than the limits, and changes tokens of its
    own.
    """
    length = np.int64(row.a_length) + np.int64(row.b_length) + _SPECIAL_TOKENS
    is_possible = (
        0 <= row.a_start <= len(table.tokens) - np.int64(row.a_length)
        and 0 <= row.b_start <= len(table.tokens) - np.int64(row.b_length)
        and 0 <= row.first_change <= len(table.changes) - np.int64(row.num_changes)
        and length <= limits[0]
        and np.int64(row.num_changes) <= limits[1]
    )
    if is_possible:
        for j in range(np.int64(row.num_changes)):
            is_possible &= table.changes[row.first_change + j].position < length
    return is_possible


def first_impossible(table: Instances, max_seq_length: int, max_predictions_per_seq: int) -> int:
    """Returns the number of the first instance that no kernel may be given; N if all are fine."""
    return _first_impossible(table, np.array([max_seq_length, max_predictions_per_seq]))


@kernel
def _first_impossible(table, limits):
    for k in range(len(table.rows)):
        if not _is_possible(table, table.rows[k], limits):
            return k
    return len(table.rows)


@inlined_kernel
def _fetch_ahead(table, number):
    """Fetches what an instance to come is made of: no processor sees it coming."""
    row = table.rows[number]
    for k in range(np.uint64(0), np.uint64(row.a_length), np.uint64(32)):  # 64 bytes
        prefetch(table.tokens, np.uint64(row.a_start) + k)
    for k in range(np.uint64(0), np.uint64(row.b_length), np.uint64(32)):
        prefetch(table.tokens, np.uint64(row.b_start) + k)
    for k in range(np.uint64(0), np.uint64(row.num_changes), np.uint64(16)):
        prefetch(table.changes, np.uint64(row.first_change) + k)


@inlined_kernel
def _copy(source, first, count, target, place):
    for k in range(np.uint64(count)):
        target[np.uint64(place) + k] = source[np.uint64(first) + k]


def gather_changes(instances: Instances, numbers: np.ndarray) -> np.ndarray:
    """Returns the changes of the instances `numbers` (int64 [K]), one after the other: CHANGE."""
    rows = instances.rows[numbers]
    gathered = np.empty(rows["num_changes"].sum(dtype=np.int64), CHANGE)
    _gather_changes(rows, instances.changes, gathered)
    return gathered


@kernel
def _gather_changes(rows, changes, gathered):
    used = np.uint64(0)
    for k in range(len(rows)):
        ahead = rows[min(k + 4, len(rows) - 1)]
        for j in range(np.uint64(0), np.uint64(ahead.num_changes), np.uint64(16)):  # 64 bytes
            prefetch(changes, np.uint64(ahead.first_change) + j)
        first, count = np.uint64(rows[k].first_change), np.uint64(rows[k].num_changes)
        for j in range(count):
            gathered[used + j] = changes[first + j]
        used += count


def fill_batch(
    instances: Instances,
    numbers: np.ndarray,
    special_ids: tuple[int, int],
    batch: dict[str, np.ndarray],
) -> None:
    """Writes the instances `numbers` (int64 [K]) as padded examples into the first K rows of a
    batch.

    special_ids: of [CLS] and [SEP]. batch: {feature name: array [K or more, length]}, float32 the
    weights, the others of one type of integers. No instance may be longer than its row.
    """
    columns = tuple(batch[name] for name in INTEGER_FEATURES)
    _fill_batch(
        instances, numbers, np.array(special_ids, np.uint16), columns, batch["masked_lm_weights"]
    )


@kernel
def _fill_batch(instances, numbers, special_ids, columns, weights):
    ids, mask, labels, positions, next_sentence, segments = columns
    one, two = np.uint64(1), np.uint64(2)
    seq_length, predictions = np.uint64(ids.shape[1]), np.uint64(labels.shape[1])
    for k in range(len(numbers)):
        _fetch_ahead(instances, numbers[min(k + 2, len(numbers) - 1)])
        row = instances.rows[numbers[k]]
        a_length, b_length = np.uint64(row.a_length), np.uint64(row.b_length)
        a_start, b_start = np.uint64(row.a_start), np.uint64(row.b_start)
        second = a_length + two  # where the second text begins
        length = second + b_length + one
        ids[k, 0] = special_ids[0]
        for j in range(a_length):
            ids[k, j + one] = instances.tokens[a_start + j]
        ids[k, second - one] = special_ids[1]
        for j in range(b_length):
            ids[k, second + j] = instances.tokens[b_start + j]
        ids[k, length - one] = special_ids[1]
        for j in range(length, seq_length):
            ids[k, j] = 0
        for j in range(seq_length):
            mask[k, j] = j < length
            segments[k, j] = (j >= second) & (j < length)
        first, count = np.uint64(row.first_change), np.uint64(row.num_changes)
        for j in range(count):
            change = instances.changes[first + j]
            place = np.uint64(change.position)
            positions[k, j], labels[k, j], weights[k, j] = place, ids[k, place], 1.0
            ids[k, place] = change.new_id
        for j in range(count, predictions):
            positions[k, j], labels[k, j], weights[k, j] = 0, 0, 0.0
        next_sentence[k, 0] = row.is_random_next
