"""Training instances -> `tf.train.Example` records in a buffer: padded, encoded, framed but for their checksums.

Kernels compiled by numba; tests/reference/example.py is their readable twin. All kernels stand in this file because
numba's cache notices changes in a kernel's own file only.
"""

import numpy as np

from bert.example import FEATURES, FLOAT_LIST, INT64_LIST, feature_lengths
from bert.kernels import inlined_kernel, kernel
from bert.tfrecord import CHECKSUM_BYTES, HEADER_BYTES, checksum_bytes, header_bytes

(
    _INPUT_IDS, _INPUT_MASK, _MASKED_LM_IDS, _MASKED_LM_POSITIONS, _MASKED_LM_WEIGHTS, _NEXT_SENTENCE_LABELS, _SEGMENT_IDS,
) = range(7)  # fmt: skip
_NAMES = [feature.name for feature in FEATURES]
assert _NAMES == [
    "input_ids", "input_mask", "masked_lm_ids", "masked_lm_positions", "masked_lm_weights", "next_sentence_labels", "segment_ids",
]  # fmt: skip

_NAME_LENGTHS = np.array([len(name) for name in _NAMES])
_FIELD_1, _FIELD_2 = 1 << 3 | 2, 2 << 3 | 2  # key bytes of length-delimited fields
_BUFFER_BYTES = 1 << 20


def encode_records(order, tokens, instances, changes, vocab, max_seq_length, max_predictions_per_seq):
    """Yields memoryviews of whole TFRecords: those of instances[order], one after the other, about 1 MB at a time.

    order: int64 [K]. tokens: uint16 [T]. instances: INSTANCE [N] and changes: uint16 [M, 2], as bert/instances.py makes them.
    A view is valid until the next one is asked for.
    """
    lengths = np.array(list(feature_lengths(max_seq_length, max_predictions_per_seq).values()))
    largest = HEADER_BYTES + CHECKSUM_BYTES + 7 * 64 + 4 * lengths.sum()  # bytes; a value takes 4 at most
    out = np.zeros(max(_BUFFER_BYTES, 2 * largest), np.uint8)
    ends = np.empty(len(out) // 64, np.int64)
    columns, packed_sizes = np.zeros((7, max(lengths) + 1), np.uint16), np.zeros(7, np.int64)
    special_ids = np.array([vocab["[CLS]"], vocab["[SEP]"]], np.uint16)
    names = np.frombuffer("".join(_NAMES).encode(), np.uint8)
    view, headers = memoryview(out), {}
    first = 0
    while first < len(order):
        count = _encode_records(
            order,
            first,
            tokens,
            instances,
            changes,
            special_ids,
            lengths,
            names,
            columns,
            packed_sizes,
            out,
            ends,
            len(out) - largest,
        )
        start = 0
        for end in ends[:count].tolist():
            length = end - start - HEADER_BYTES - CHECKSUM_BYTES
            if length not in headers:
                headers[length] = header_bytes(length)
            view[start : start + HEADER_BYTES] = headers[length]
            view[end - CHECKSUM_BYTES : end] = checksum_bytes(bytes(view[start + HEADER_BYTES : end - CHECKSUM_BYTES]))
            start = end
        yield view[:start]
        first += count


@kernel
def _encode_records(
    order, first, tokens, instances, changes, special_ids, lengths, names, columns, packed_sizes, out, ends, limit
):
    """Encodes instances[order[first:]] until `limit` bytes are passed; returns how many, and where each ends in `ends`."""
    at, count = 0, 0
    while first + count < len(order) and at < limit:
        row = instances[order[first + count]]
        _fill_columns(row, tokens, changes, special_ids, lengths, columns)
        at = _encode_example(columns, lengths, names, packed_sizes, out, at + HEADER_BYTES) + CHECKSUM_BYTES
        ends[count] = at
        count += 1
    return count


@kernel
def _fill_columns(row, tokens, changes, special_ids, lengths, columns):
    """Writes the values of the seven features, padded with 0, into `columns` (uint16 [7, longest feature])."""
    # Unsigned numbers throughout: an index that cannot be negative is not checked for it.
    one, a_start, b_start, first_change = (
        np.uint64(1),
        np.uint64(row.a_start),
        np.uint64(row.b_start),
        np.uint64(row.first_change),
    )
    a_length, b_length, num_changes = np.uint64(row.a_length), np.uint64(row.b_length), np.uint64(row.num_changes)
    max_seq_length, max_predictions_per_seq = np.uint64(lengths[_INPUT_IDS]), np.uint64(lengths[_MASKED_LM_IDS])
    second = a_length + np.uint64(2)  # where the second segment begins
    length = second + b_length + one
    columns[_INPUT_IDS, 0], columns[_INPUT_IDS, second - one], columns[_INPUT_IDS, length - one] = (
        special_ids[0],
        special_ids[1],
        special_ids[1],
    )
    for k in range(a_length):
        columns[_INPUT_IDS, k + one] = tokens[a_start + k]
    for k in range(b_length):
        columns[_INPUT_IDS, second + k] = tokens[b_start + k]
    for k in range(length, max_seq_length):
        columns[_INPUT_IDS, k] = 0
    for k in range(max_seq_length):
        columns[_INPUT_MASK, k] = k < length
        columns[_SEGMENT_IDS, k] = second <= k < length
    for k in range(num_changes):
        position = changes[first_change + k, 0]
        columns[_MASKED_LM_POSITIONS, k] = position
        columns[_MASKED_LM_IDS, k] = columns[_INPUT_IDS, position]
        columns[_INPUT_IDS, position] = changes[first_change + k, 1]
    for k in range(num_changes, max_predictions_per_seq):
        columns[_MASKED_LM_POSITIONS, k] = 0
        columns[_MASKED_LM_IDS, k] = 0
    for k in range(max_predictions_per_seq):
        columns[_MASKED_LM_WEIGHTS, k] = k < num_changes
    columns[_NEXT_SENTENCE_LABELS, 0] = row.is_random_next


@kernel
def _encode_example(columns, lengths, names, packed_sizes, out, at):
    """Writes the columns as a `tf.train.Example` at out[at]; returns where it ends.

    Example { Features { entry { name, Feature { Int64List or FloatList { packed values } } } ... } }
    """
    total = 0
    for f in range(7):
        packed_sizes[f] = _packed_size(columns, lengths, f)
        total += _field_size(_entry_size(packed_sizes[f], f))
    at = _open_field(out, at, _FIELD_1, total)
    name_start = 0
    for f in range(7):
        packed = packed_sizes[f]
        at = _open_field(out, at, _FIELD_1, _entry_size(packed, f))
        at = _open_field(out, at, _FIELD_1, _NAME_LENGTHS[f])
        for k in range(_NAME_LENGTHS[f]):
            out[at + k] = names[name_start + k]
        at += _NAME_LENGTHS[f]
        name_start += _NAME_LENGTHS[f]
        at = _open_field(out, at, _FIELD_2, _field_size(_field_size(packed)))
        at = _open_field(out, at, (FLOAT_LIST if f == _MASKED_LM_WEIGHTS else INT64_LIST) << 3 | 2, _field_size(packed))
        at = _open_field(out, at, _FIELD_1, packed)
        if f == _MASKED_LM_WEIGHTS:
            _pack_ones(columns, f, lengths[f], out, at)
        elif packed == lengths[f]:  # one byte a value
            for k in range(np.uint64(packed)):
                out[np.uint64(at) + k] = columns[f, k]
        else:
            _pack_varints(columns, f, lengths[f], out, at)
        at += packed
    return at


@kernel
def _pack_ones(columns, f, length, out, at):
    """Writes values of 0 and 1 as little-endian float32: 1.0 is 00 00 80 3f."""
    place = np.uint64(at)
    for k in range(np.uint64(length)):
        value = np.uint8(columns[f, k])
        out[place], out[place + np.uint64(1)] = 0, 0
        out[place + np.uint64(2)], out[place + np.uint64(3)] = value * np.uint8(0x80), value * np.uint8(0x3F)
        place += np.uint64(4)


@kernel
def _pack_varints(columns, f, length, out, at):
    """Writes values below 2**16 as varints. Three bytes are written always and the needed ones kept: no branch to guess."""
    place, one, two = np.uint64(at), np.uint64(1), np.uint64(2)  # unsigned: no index is checked for being negative
    for k in range(np.uint64(length)):
        value = np.uint32(columns[f, k])
        is_longer, is_longest = value >= np.uint32(1 << 7), value >= np.uint32(1 << 14)
        out[place] = value & np.uint32(0x7F) | np.uint32(is_longer) << np.uint32(7)
        out[place + one] = value >> np.uint32(7) & np.uint32(0x7F) | np.uint32(is_longest) << np.uint32(7)
        out[place + two] = value >> np.uint32(14)
        place += one + np.uint64(is_longer) + np.uint64(is_longest)


@kernel
def _packed_size(columns, lengths, f):
    size = np.uint64(lengths[f])
    if f == _MASKED_LM_WEIGHTS:
        size *= np.uint64(4)
    elif f == _INPUT_IDS or f == _MASKED_LM_IDS or f == _MASKED_LM_POSITIONS:  # the others hold 0 and 1 only
        for k in range(np.uint64(lengths[f])):
            value = columns[f, k]
            size += np.uint64(value >= np.uint16(1 << 7)) + np.uint64(value >= np.uint16(1 << 14))
    return np.int64(size)


@kernel
def _entry_size(packed_size, f):
    return _field_size(_NAME_LENGTHS[f]) + _field_size(_field_size(_field_size(packed_size)))


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
    at += 1
    while size >= 1 << 7:
        out[at] = size & 0x7F | 0x80
        size >>= 7
        at += 1
    out[at] = size
    return at + 1
