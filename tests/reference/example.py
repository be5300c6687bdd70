"""The readable encoder of a `tf.train.Example`: what bert/examples/encoding.py writes, without
TensorFlow.
"""

import struct

from bert.examples.example import FEATURES, FLOAT_LIST, INT64_LIST

_LENGTH_DELIMITED = 2  # wire type


def encode_example(values):
    """Encodes {feature name: list of int, 0 or more, or of float} as a serialized
    `tf.train.Example` (bytes).
    """
    entries = []
    for feature in FEATURES:
        column = values[feature.name]
        if feature.dtype == "float32":
            kind, packed = FLOAT_LIST, struct.pack(f"<{len(column)}f", *column)
        else:
            kind, packed = INT64_LIST, b"".join(map(_varint, column))
        name_and_value = _field(1, feature.name.encode()) + _field(
            2, _field(kind, _field(1, packed))
        )
        entries.append(_field(1, name_and_value))
    return _field(1, b"".join(entries))


def _field(number, content):
    return bytes((number << 3 | _LENGTH_DELIMITED,)) + _varint(len(content)) + content


def _varint(value):
    """Seven bits a byte, low bits first, the high bit set on all but the last byte."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
