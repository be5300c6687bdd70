"""The pretraining example: its seven features, and how to read them out of a `tf.train.Example`
message.

This is the place that knows the names, lengths and types; writer (bert/examples/encoding.py),
picker and loader use it.
"""

from typing import NamedTuple

import numpy as np

from bert.common.files import DataError


class Feature(NamedTuple):
    name: str
    length: str  # "sequence" (max_seq_length), "predictions" (max_predictions_per_seq) or "one"
    dtype: str  # "int64" or "float32"


# Sorted by name: the order in a record, as SerializeToString(deterministic=True) writes it. All
# padding is 0.
FEATURES = (
    Feature("input_ids", "sequence", "int64"),
    Feature("input_mask", "sequence", "int64"),
    Feature("masked_lm_ids", "predictions", "int64"),
    Feature("masked_lm_positions", "predictions", "int64"),
    Feature("masked_lm_weights", "predictions", "float32"),
    Feature("next_sentence_labels", "one", "int64"),
    Feature("segment_ids", "sequence", "int64"),
)


MAX_VALUE = 2**31  # integers are below it


def feature_lengths(max_seq_length: int, max_predictions_per_seq: int) -> dict[str, int]:
    """Returns {feature name: number of values}."""
    lengths = {"sequence": max_seq_length, "predictions": max_predictions_per_seq, "one": 1}
    return {feature.name: lengths[feature.length] for feature in FEATURES}


# --------------------------------------------------------------------------------------------------
# Protocol buffers, as far as this message needs them. Field numbers: TensorFlow,
# core/example/{example,feature}.proto

FLOAT_LIST, INT64_LIST = 2, 3
_LENGTH_DELIMITED = 2  # wire type


def decode_example(payload: bytes, place: str) -> dict[str, np.ndarray]:
    """Decodes a serialized `tf.train.Example` into {feature name: array [length] of int64 or
    float32}.

    `place` (file and record) begins the message of the DataError for anything but the seven
    features. Values may be packed or not, and map entries in any order, as every protobuf reader
    must allow.
    """
    try:
        found = {}
        for entry in _contents(payload, 1, 1):
            (name,) = _contents(entry, 1)
            found[name.decode()] = _decode_feature(b"".join(_contents(entry, 2)))
    except (ValueError, IndexError):
        raise DataError(f"{place}: not a tf.train.Example; make the file again") from None
    expected = {feature.name: feature.dtype for feature in FEATURES}
    if found.keys() != expected.keys():
        raise DataError(
            f"{place}: expected the features {', '.join(expected)}; "
            f"missing: {', '.join(expected.keys() - found.keys()) or 'none'}, "
            f"unknown: {', '.join(found.keys() - expected.keys()) or 'none'}"
        )
    for name, dtype in expected.items():
        if found[name].dtype != dtype:
            raise DataError(f"{place}: {name} holds {found[name].dtype}, expected {dtype}")
    return found


def check_lengths(
    example: dict[str, np.ndarray], max_seq_length: int, max_predictions_per_seq: int, place: str
) -> None:
    """DataError if a feature of a decoded example is not as long as the two flags say."""
    for name, expected in feature_lengths(max_seq_length, max_predictions_per_seq).items():
        if len(example[name]) != expected:
            raise DataError(
                f"{place}: {name} has {len(example[name])} values, expected {expected} "
                f"(--max_seq_length={max_seq_length} "
                f"--max_predictions_per_seq={max_predictions_per_seq})"
            )


def check_values(
    example: dict[str, np.ndarray], lengths: dict[str, int], vocab_size: int | None, place: str
) -> None:
    """DataError if a decoded example does not have `lengths` ({feature name: number of values}), a
    token id is negative or not below `vocab_size` (None: any), or a position lies outside the
    sequence.
    """
    for name, expected in lengths.items():
        if len(example[name]) != expected:
            raise DataError(
                f"{place}: {name} has {len(example[name])} values, expected {expected}: examples "
                "that are read together have one max_seq_length and one max_predictions_per_seq, "
                "those of the first record"
            )
    for name, values in example.items():
        is_id = name in ("input_ids", "masked_lm_ids")
        limit = {"masked_lm_positions": lengths["input_ids"]}.get(
            name, (is_id and vocab_size) or MAX_VALUE
        )
        if values.dtype == np.int64 and (wrong := values[(values < 0) | (values >= limit)]).size:
            raise DataError(
                f"{place}: {name} holds token id {wrong[0]}, expected 0 to below vocab_size "
                f"{limit}; use the vocabulary and configuration that made the examples"
                if is_id
                else (
                    f"{place}: {name} holds {wrong[0]}, expected 0 to below {limit}; "
                    "make the file again with create_pretraining_data.py"
                )
            )


def _decode_feature(feature):
    """A `Feature` message -> array [length] of its float or integer list."""
    for number, _, value_list in _fields(feature):
        is_float = number == FLOAT_LIST
        # One value not packed is a field of its own; joined, they are what a packed field holds.
        packed = b"".join(content for _, _, content in _fields(value_list))
        if is_float:
            return np.frombuffer(packed, "<f4")
        if number == INT64_LIST:
            return _decode_varints(packed)
    return np.empty(0, np.int64)


def _decode_varints(data):
    """Packed varints -> int64 array: 7 bits a byte, low bits first, the high bit set on all but the
    last byte.
    """
    if not data:
        return np.empty(0, np.int64)
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80) + 1
    starts = np.concatenate(([0], ends[:-1]))
    if len(ends) == 0 or ends[-1] != len(octets):
        raise ValueError("the data ends inside a varint")
    shifts = 7 * (np.arange(len(octets)) - np.repeat(starts, ends - starts))
    groups = (octets & 0x7F).astype(np.uint64) << shifts.astype(np.uint64)
    return np.add.reduceat(groups, starts).view(np.int64)


def _contents(message, *path):
    """Yields the contents of the length-delimited fields reached by following the field numbers of
    `path`.
    """
    number, *rest = path
    for field_number, wire_type, content in _fields(message):
        if field_number == number and wire_type == _LENGTH_DELIMITED:
            if rest:
                yield from _contents(content, *rest)
            else:
                yield content


def _fields(message):
    """Yields (field number, wire type, content as bytes) of a serialized message."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        wire_type = key & 7
        if wire_type == _LENGTH_DELIMITED:
            size, position = _read_varint(message, position)
            end = position + size
        elif wire_type == 0:
            end = _read_varint(message, position)[1]
        elif wire_type == 5:
            end = position + 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if end > len(message):
            raise ValueError("the message ends inside a field")
        yield key >> 3, wire_type, message[position:end]
        position = end


def _read_varint(data, position):
    value = shift = 0
    while True:
        octet = data[position]
        position += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
        shift += 7
