"""Training instances -> `tf.train.Example` records in a buffer: padded, encoded, framed but for
their checksums.

Kernels compiled by numba; tests/reference/example.py is their reference implementation. All kernels
stand in this file because numba's cache notices changes in a kernel's own file only.
"""

from collections.abc import Iterator

import numpy as np

from bert.common.kernels import at_every_offset, inlined_kernel, kernel, prefetch
from bert.examples.example import FEATURES, FLOAT_LIST, INT64_LIST, feature_lengths
from bert.examples.instances import Instances
from bert.examples.records import seal_records
from bert.examples.tfrecord import CHECKSUM_BYTES, FRAME_BYTES, HEADER_BYTES

(
    _INPUT_IDS, _INPUT_MASK, _MASKED_LM_IDS, _MASKED_LM_POSITIONS, _MASKED_LM_WEIGHTS,
    _NEXT_SENTENCE_LABELS, _SEGMENT_IDS,
) = range(7)  # fmt: skip
_NAMES = [feature.name for feature in FEATURES]
assert _NAMES == [
    "input_ids", "input_mask", "masked_lm_ids", "masked_lm_positions", "masked_lm_weights",
    "next_sentence_labels", "segment_ids",
]  # fmt: skip

_NAME_LENGTHS = np.array([len(name) for name in _NAMES])
_NAME_STARTS = np.cumsum(_NAME_LENGTHS) - _NAME_LENGTHS
_FIELD_1, _FIELD_2 = 1 << 3 | 2, 2 << 3 | 2  # key bytes of length-delimited fields
_ONE = np.uint32(0x3F800000)  # 1.0 as a float32
_BUFFER_BYTES = 1 << 18  # stays in a core's own cache between encoding, checksum and write


def encode_records(
    instances: Instances,
    special_ids: tuple[int, int],
    max_seq_length: int,
    max_predictions_per_seq: int,
) -> Iterator[tuple[memoryview, int]]:
    """Yields (memoryview of whole TFRecords, their number), one record for each instance in their
    order, about 256 KB at a time.

    special_ids: of [CLS] and [SEP]. A view is valid until the next one is asked for.
    """
    rows, tokens, changes = instances
    lengths = _feature_lengths(max_seq_length, max_predictions_per_seq)
    # In bytes; a value takes 4 at most.
    largest = HEADER_BYTES + CHECKSUM_BYTES + 7 * 64 + 4 * lengths.sum()
    out = np.zeros(max(_BUFFER_BYTES, 2 * largest), np.uint8)
    out_fours = at_every_offset(out, np.uint32)
    ends = np.empty(len(out) // 64, np.int64)
    scratch = _scratch(max_seq_length, max_predictions_per_seq)
    names = np.frombuffer("".join(_NAMES).encode(), np.uint8)
    tables, first = (lengths, names, _varints()), 0
    while first < len(rows):
        count = _encode_records(
            rows, first, tokens, changes, np.array(special_ids, np.uint16), tables, scratch,
            out, out_fours, ends, len(out) - largest,
        )  # fmt: skip
        seal_records(out, ends[:count])
        yield memoryview(out)[: ends[count - 1]], count
        first += count


def tfrecord_bytes(
    instances: Instances,
    special_ids: tuple[int, int],
    max_seq_length: int,
    max_predictions_per_seq: int,
) -> int:
    """Returns the size of all records that `encode_records` makes of instances."""
    lengths = _feature_lengths(max_seq_length, max_predictions_per_seq)
    scratch = _scratch(max_seq_length, max_predictions_per_seq)
    return _count_bytes(*instances, np.array(special_ids, np.uint16), lengths, scratch)


def _feature_lengths(max_seq_length, max_predictions_per_seq):
    """int64 [7], in the order of FEATURES."""
    return np.array(list(feature_lengths(max_seq_length, max_predictions_per_seq).values()))


def _scratch(max_seq_length, max_predictions_per_seq):
    """Room for the ids, positions and labels of an example (uint16), and the sizes of its packed
    features (int64 [7]).
    """
    ids = np.empty(max_seq_length, np.uint16)
    positions, labels = np.empty((2, max_predictions_per_seq), np.uint16)
    return ids, positions, labels, np.empty(7, np.int64)


def _varints():
    """uint32 [65536]: the varint of each uint16 in the three low bytes, its length in bytes in the
    highest.
    """
    values = np.arange(1 << 16, dtype=np.uint32)
    is_longer, is_longest = values >= 1 << 7, values >= 1 << 14
    low, middle, high = (
        values & 0x7F | is_longer * 0x80,
        values >> 7 & 0x7F | is_longest * 0x80,
        values >> 14,
    )
    return (low | middle << 8 | high << 16 | (1 + is_longer + is_longest) << 24).astype(np.uint32)


@kernel
def _encode_records(
    rows, first, tokens, changes, special_ids, tables, scratch, out, out_fours, ends, limit
):
    """Encodes rows[first:] until `limit` bytes are passed; returns how many, and where each ends in
    `ends`.
    """
    at, count = np.uint64(0), 0
    while first + count < len(rows) and at < limit:
        row = rows[first + count]
        _fetch_ahead(rows[min(first + count + 2, len(rows) - 1)], tokens, changes)
        _fill_in(row, tokens, changes, special_ids, scratch)
        at += np.uint64(HEADER_BYTES)
        at = _encode_example(row, tables, scratch, out, out_fours, at)
        at += np.uint64(CHECKSUM_BYTES)
        ends[count] = at
        count += 1
    return count


@inlined_kernel
def _fetch_ahead(row, tokens, changes):
    """Fetches what an instance to come is made of: rows are in shuffled order, so no processor sees
    it coming.
    """
    for k in range(np.uint64(0), np.uint64(row.a_length), np.uint64(32)):  # 64 bytes
        prefetch(tokens, np.uint64(row.a_start) + k)
    for k in range(np.uint64(0), np.uint64(row.b_length), np.uint64(32)):
        prefetch(tokens, np.uint64(row.b_start) + k)
    for k in range(np.uint64(0), np.uint64(row.num_changes), np.uint64(16)):
        prefetch(changes, np.uint64(row.first_change) + k)


@kernel
def _fill_in(row, tokens, changes, special_ids, scratch):
    """Writes input_ids, masked_lm_positions and masked_lm_ids of an instance into `scratch`,
    without their padding.
    """
    ids, positions, labels, _ = scratch
    one, a_length, b_length = np.uint64(1), np.uint64(row.a_length), np.uint64(row.b_length)
    a_start, b_start = np.uint64(row.a_start), np.uint64(row.b_start)
    first_change = np.uint64(row.first_change)
    second = a_length + np.uint64(2)  # where the second segment begins
    ids[0] = special_ids[0]
    ids[second - one] = ids[second + b_length] = special_ids[1]
    for k in range(a_length):
        ids[k + one] = tokens[a_start + k]
    for k in range(b_length):
        ids[second + k] = tokens[b_start + k]
    for k in range(np.uint64(row.num_changes)):
        change = changes[first_change + k]
        positions[k], labels[k] = change.position, ids[change.position]
        ids[change.position] = change.new_id


@kernel
def _measure(row, lengths, scratch):
    """Fills in the packed sizes of what `_fill_in` left in `scratch`; returns the size of
    `Features`.
    """
    ids, positions, labels, packed_sizes = scratch
    length, num_changes = np.uint64(row.a_length + row.b_length + 3), np.uint64(row.num_changes)
    for f in range(7):
        packed_sizes[f] = lengths[f]
    packed_sizes[_INPUT_IDS] += _extra_bytes(ids, length)
    packed_sizes[_MASKED_LM_IDS] += _extra_bytes(labels, num_changes)
    packed_sizes[_MASKED_LM_POSITIONS] += _extra_bytes(positions, num_changes)
    packed_sizes[_MASKED_LM_WEIGHTS] *= 4
    total = 0
    for f in range(7):
        total += _field_size(_entry_size(packed_sizes[f], f))
    return total


@kernel
def _count_bytes(rows, tokens, changes, special_ids, lengths, scratch):
    total = len(rows) * FRAME_BYTES
    for k in range(len(rows)):
        _fill_in(rows[k], tokens, changes, special_ids, scratch)
        total += _field_size(_measure(rows[k], lengths, scratch))
    return total


@kernel
def _encode_example(row, tables, scratch, out, out_fours, at):
    """Writes an instance as a `tf.train.Example` at out[at]; returns where it ends.

    Example { Features { entry { name, Feature { Int64List or FloatList { packed values } } } ... }
    }
    """
    lengths, names, varints = tables
    ids, positions, labels, packed_sizes = scratch
    second, length = np.uint64(row.a_length + 2), np.uint64(row.a_length + row.b_length + 3)
    num_changes = np.uint64(row.num_changes)
    at = _open_field(out, at, _FIELD_1, _measure(row, lengths, scratch))
    at = _open_feature(out, at, names, packed_sizes, _INPUT_IDS)
    at = _pack_varints(out, out_fours, at, ids, length, lengths[_INPUT_IDS], varints)
    at = _open_feature(out, at, names, packed_sizes, _INPUT_MASK)
    at = _pack_repeated(
        out, _pack_repeated(out, at, 1, length), 0, np.uint64(lengths[_INPUT_MASK]) - length
    )
    at = _open_feature(out, at, names, packed_sizes, _MASKED_LM_IDS)
    at = _pack_varints(out, out_fours, at, labels, num_changes, lengths[_MASKED_LM_IDS], varints)
    at = _open_feature(out, at, names, packed_sizes, _MASKED_LM_POSITIONS)
    at = _pack_varints(
        out, out_fours, at, positions, num_changes, lengths[_MASKED_LM_POSITIONS], varints
    )
    at = _open_feature(out, at, names, packed_sizes, _MASKED_LM_WEIGHTS)
    for k in range(num_changes):
        out_fours[at + np.uint64(4) * k] = _ONE
    at += np.uint64(4) * num_changes
    at = _pack_repeated(
        out, at, 0, np.uint64(4) * (np.uint64(lengths[_MASKED_LM_WEIGHTS]) - num_changes)
    )
    at = _open_feature(out, at, names, packed_sizes, _NEXT_SENTENCE_LABELS)
    at = _pack_repeated(out, at, row.is_random_next, np.uint64(1))
    at = _open_feature(out, at, names, packed_sizes, _SEGMENT_IDS)
    at = _pack_repeated(out, _pack_repeated(out, at, 0, second), 1, length - second)
    return _pack_repeated(out, at, 0, np.uint64(lengths[_SEGMENT_IDS]) - length)


@kernel
def _pack_repeated(out, at, value, count):
    """Writes a value below 128 `count` times; returns where they end."""
    for k in range(count):
        out[at + k] = value
    return at + count


@kernel
def _pack_varints(out, out_fours, at, values, count, length, varints):
    """Writes values[:count] as varints and zeros up to `length` values; returns where they end.

    Four bytes are written always and the needed ones kept: no branch to guess.
    """
    for k in range(count):
        varint = varints[values[k]]
        out_fours[at] = varint
        at += np.uint64(varint >> np.uint32(24))
    return _pack_repeated(out, at, 0, np.uint64(length) - count)


@kernel
def _extra_bytes(values, count):
    """How many bytes the varints of values[:count] take beyond one each."""
    extra = np.uint64(0)
    for k in range(count):
        extra += np.uint64(values[k] >= np.uint16(1 << 7)) + np.uint64(
            values[k] >= np.uint16(1 << 14)
        )
    return np.int64(extra)


@kernel
def _entry_size(packed_size, f):
    return _field_size(_NAME_LENGTHS[f]) + _field_size(_field_size(_field_size(packed_size)))


@kernel
def _open_feature(out, at, names, packed_sizes, f):
    """Writes all of a feature's map entry that stands before its values; returns where they go."""
    packed, name_length = packed_sizes[f], _NAME_LENGTHS[f]
    at = _open_field(out, at, _FIELD_1, _entry_size(packed, f))
    at = _open_field(out, at, _FIELD_1, name_length)
    name_start = np.uint64(_NAME_STARTS[f])
    for k in range(np.uint64(name_length)):
        out[at + k] = names[name_start + k]
    at += np.uint64(name_length)
    at = _open_field(out, at, _FIELD_2, _field_size(_field_size(packed)))
    at = _open_field(
        out,
        at,
        (FLOAT_LIST if f == _MASKED_LM_WEIGHTS else INT64_LIST) << 3 | 2,
        _field_size(packed),
    )
    return _open_field(out, at, _FIELD_1, packed)


@inlined_kernel
def _field_size(size):
    """Bytes of a length-delimited field with `size` bytes in it."""
    total = 2 + size
    while size >= 1 << 7:
        size >>= 7
        total += 1
    return total


@inlined_kernel
def _open_field(out, at, key, size):
    """Writes a field's key and size; returns where its content goes."""
    out[at] = key
    at += np.uint64(1)
    while size >= 1 << 7:
        out[at] = size & 0x7F | 0x80
        size >>= 7
        at += np.uint64(1)
    out[at] = size
    return at + np.uint64(1)
