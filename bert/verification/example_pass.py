"""Passes the serialized examples that are surely right, at the speed of the disk;
bert/verification/example_check.py judges the rest in words.

Usual are examples as TensorFlow and create_pretraining_data.py write them: values packed, features
in any order. All kernels stand in this file because numba's cache notices changes in a kernel's own
file only.
"""

import numpy as np

from bert.common.kernels import inlined_kernel, kernel
from bert.examples.example import FEATURES, FLOAT_LIST, INT64_LIST

(
    _INPUT_IDS, _INPUT_MASK, _MASKED_LM_IDS, _MASKED_LM_POSITIONS, _MASKED_LM_WEIGHTS,
    _NEXT_SENTENCE_LABELS, _SEGMENT_IDS,
) = range(7)  # fmt: skip
_NAMES = [feature.name for feature in FEATURES]
NAMES_IN_ONE = np.frombuffer("".join(_NAMES).encode(), np.uint8)
NAME_ENDS = np.cumsum([len(name) for name in _NAMES])
_FIELD_1, _FIELD_2 = 1 << 3 | 2, 2 << 3 | 2  # key bytes of length-delimited fields


@kernel
def pass_examples(
    data,
    starts,
    ends,
    lengths,
    vocab_size,
    special_ids,
    num_masked,
    multipliers,
    names,
    name_ends,
    scratch,
    hashes,
    is_right,
    totals,
):
    """Sets is_right[k] and hashes[k] and adds to totals for each example that is surely right;
    leaves the others alone.
    """
    places, values = scratch[0], scratch[1:]
    for k in range(len(starts)):
        if _find_features(data, starts[k], ends[k], lengths, names, name_ends, places):
            is_right[k] = _pass_example(
                data,
                places,
                lengths,
                vocab_size,
                special_ids,
                num_masked,
                multipliers,
                values,
                hashes,
                k,
                totals,
            )


@kernel
def _find_features(data, at, end, lengths, names, name_ends, places):
    """Writes to places[2f], places[2f + 1] where the packed values of feature f begin and end;
    whether all seven are there.
    """
    at, size = _open_field(data, at, end, _FIELD_1)
    if size < 0 or at + size != end:
        return False
    seen = 0
    while at < end:
        at, size = _open_field(data, at, end, _FIELD_1)
        entry_end = at + size
        if size < 0 or entry_end > end:
            return False
        at, size = _open_field(data, at, entry_end, _FIELD_1)
        f = _feature_named(data, at, size, entry_end, names, name_ends)
        if f < 0:
            return False
        seen |= 1 << f
        at, size = _open_field(data, at + size, entry_end, _FIELD_2)
        if size < 0 or at + size != entry_end:
            return False
        at, size = _open_field(
            data, at, entry_end, (FLOAT_LIST if f == _MASKED_LM_WEIGHTS else INT64_LIST) << 3 | 2
        )
        if size < 0 or at + size != entry_end:
            return False
        at, size = _open_field(data, at, entry_end, _FIELD_1)
        if size < 0 or at + size != entry_end:
            return False
        places[2 * f], places[2 * f + 1] = at, entry_end
        at = entry_end
    return seen == 127


@kernel
def _feature_named(data, at, size, end, names, name_ends):
    """The number of the feature whose name is data[at:at + size], -1 if there is none."""
    if size < 0 or at + size > end:
        return -1
    start = 0
    for f in range(7):
        if name_ends[f] - start == size:
            same = True
            for k in range(size):
                same &= data[at + k] == names[start + k]
            if same:
                return f
        start = name_ends[f]
    return -1


@kernel
def _pass_example(
    data,
    places,
    lengths,
    vocab_size,
    special_ids,
    num_masked,
    multipliers,
    values,
    hashes,
    k,
    totals,
):
    length = _count_first_ones(data, places, _INPUT_MASK, lengths)
    if (
        length < 5
        or places[2 * _SEGMENT_IDS + 1] - places[2 * _SEGMENT_IDS] != lengths[_SEGMENT_IDS]
    ):
        return False
    b_length = _count_ones(data, places[2 * _SEGMENT_IDS], lengths[_SEGMENT_IDS])
    second = length - b_length
    if (
        second < 3
        or b_length < 2
        or not _ones_are(data, places[2 * _SEGMENT_IDS], lengths[_SEGMENT_IDS], second, length)
    ):
        return False
    count = _count_first_floats(data, places, lengths)
    if count < 0 or (num_masked[length] >= 0 and num_masked[length] != count):
        return False
    label_at = places[2 * _NEXT_SENTENCE_LABELS]
    if places[2 * _NEXT_SENTENCE_LABELS + 1] - label_at != 1 or data[label_at] > 1:
        return False
    total = (
        np.uint64(length) * multipliers[_INPUT_MASK, 0]
        + np.uint64(b_length) * multipliers[_SEGMENT_IDS, 0]
        + np.uint64(count) * multipliers[_MASKED_LM_WEIGHTS, 0]
        + np.uint64(data[label_at]) * multipliers[_NEXT_SENTENCE_LABELS, 0]
    )
    ids, others = values[0], values[1]
    if not _decode(data, places, _INPUT_IDS, lengths, length, vocab_size, ids):
        return False
    if (
        ids[0] != special_ids[0]
        or ids[second - 1] != special_ids[1]
        or ids[length - 1] != special_ids[1]
    ):
        return False
    total += _weighted_sum(ids, multipliers[_INPUT_IDS], length)
    if not _decode(data, places, _MASKED_LM_IDS, lengths, count, vocab_size, others):
        return False
    total += _weighted_sum(others, multipliers[_MASKED_LM_IDS], count)
    if not _decode(data, places, _MASKED_LM_POSITIONS, lengths, count, length - 1, others):
        return False
    total += _weighted_sum(others, multipliers[_MASKED_LM_POSITIONS], count)
    last, shown_as_mask = 0, 0
    for j in range(count):
        position = others[j]
        if position <= last or position == second - 1:
            return False
        shown_as_mask += ids[position] == special_ids[3]
        last = position
    unknown, largest = 0, totals[5]
    for j in range(np.uint64(length)):
        unknown += ids[j] == special_ids[2]
        largest = max(largest, ids[j])
    totals[0] += length
    totals[1] += unknown
    totals[2] += count
    totals[3] += shown_as_mask
    totals[4] += data[label_at]
    totals[5] = largest
    total ^= total >> np.uint64(32)
    hashes[k] = total * multipliers[_NEXT_SENTENCE_LABELS, 1]
    return True


@kernel
def _count_first_ones(data, places, f, lengths):
    """How many ones the packed values of feature f begin with, -1 if there is anything but zeros
    after them.
    """
    if places[2 * f + 1] - places[2 * f] != lengths[f]:
        return -1
    count = _count_ones(data, places[2 * f], lengths[f])
    return count if _ones_are(data, places[2 * f], lengths[f], 0, count) else -1


@kernel
def _count_ones(data, at, length):
    place, count = np.uint64(at), 0
    for j in range(np.uint64(length)):
        count += data[place + j] == 1
    return count


@kernel
def _ones_are(data, at, length, begin, end):
    """Whether data[at:at + length] is 1 from `begin` up to `end` and 0 elsewhere."""
    place, different = np.uint64(at), 0
    for j in range(np.uint64(length)):
        different += data[place + j] != (np.uint64(begin) <= j < np.uint64(end))
    return different == 0


@kernel
def _count_first_floats(data, places, lengths):
    """How many 1.0s (little-endian 00 00 80 3f) masked_lm_weights begins with, -1 if there is
    anything but 0.0s after them.
    """
    at, length = places[2 * _MASKED_LM_WEIGHTS], lengths[_MASKED_LM_WEIGHTS]
    if places[2 * _MASKED_LM_WEIGHTS + 1] - at != 4 * length:
        return -1
    place, count, different = np.uint64(at), np.uint64(0), 0
    for j in range(np.uint64(length)):
        count += np.uint64(data[place + np.uint64(4) * j + np.uint64(3)] == 0x3F)
    for j in range(np.uint64(length)):
        first, is_one = place + np.uint64(4) * j, np.uint8(j < count)
        different += data[first] | data[first + np.uint64(1)]
        different += data[first + np.uint64(2)] != is_one * np.uint8(0x80)
        different += data[first + np.uint64(3)] != is_one * np.uint8(0x3F)
    return np.int64(count) if different == 0 else -1


@kernel
def _decode(data, places, f, lengths, count, limit, out):
    """Decodes the first `count` packed values of feature f; whether they are below `limit`, and the
    rest of the feature is 0.
    """
    place, end = np.uint64(places[2 * f]), np.uint64(places[2 * f + 1])
    one, seven, fourteen = np.uint64(1), np.uint64(7), np.uint64(14)
    fits = True
    for j in range(np.uint64(count)):
        if end - place < np.uint64(3) and not _ends_before(data, place, end):
            return False
        value = np.uint64(data[place])
        place += one
        if value >= np.uint64(0x80):
            following = np.uint64(data[place])
            place += one
            value = value & np.uint64(0x7F) | following << seven
            if following >= np.uint64(0x80):
                value = value & np.uint64(0x3FFF) | np.uint64(data[place]) << fourteen
                place += one
        out[j] = np.int64(value)  # a fourth byte makes it 1 << 21 at least, which is over any limit
        fits &= value < np.uint64(limit)
    rest = lengths[f] - count
    if not fits or np.int64(end - place) != rest:
        return False
    bits = np.uint8(0)
    for j in range(np.uint64(rest)):
        bits |= data[place + j]
    return bits == 0


@inlined_kernel
def _ends_before(data, place, end):
    """Whether a byte without the sign that more follow stands in data[place:end]."""
    found = False
    while place < end:
        found |= data[place] < 0x80
        place += np.uint64(1)
    return found


@kernel
def _weighted_sum(values, multipliers, count):
    total = np.uint64(0)
    for j in range(np.uint64(count)):
        total += np.uint64(values[j]) * multipliers[j]
    return total


@inlined_kernel
def _open_field(data, at, end, key):
    """Reads the key and size of a length-delimited field; returns where its content begins and its
    size, -1 if it is none.
    """
    size = -1
    if at < end and data[at] == key:
        at += 1
        shift, value = 0, 0
        while at < end and shift < 28:
            octet = np.int64(data[at])
            at += 1
            value |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                size = value
                break
    return at, size
