"""bert/examples/decoding.py: equal to the readable decoder on whatever protobuf allows; all else
refused with its place.
"""

import random
import struct

import numpy as np
import pytest
from conftest import synthetic_example
from hypothesis import given
from hypothesis import strategies as st

from bert.common.files import DataError
from bert.examples.decoding import Decoder, Records, decode_rows
from bert.examples.example import FEATURES, decode_example, feature_lengths
from bert.examples.tfrecord import checksum_bytes, frame
from tests.reference.example import encode_example

SEQUENCE, PREDICTIONS, VOCAB = 16, 3, 1000
LENGTHS = feature_lengths(SEQUENCE, PREDICTIONS)


def random_example(generator):
    values = {
        feature.name: [
            generator.choice((0, 1, 127, 128, 999, generator.randrange(VOCAB)))
            for _ in range(LENGTHS[feature.name])
        ]
        for feature in FEATURES
    }
    values["masked_lm_positions"] = [generator.randrange(SEQUENCE) for _ in range(PREDICTIONS)]
    values["masked_lm_weights"] = [
        generator.choice((0.0, 1.0, generator.random())) for _ in range(PREDICTIONS)
    ]
    return values


def records_of(payloads):
    starts = np.cumsum([0] + [len(payload) + 16 for payload in payloads])[:-1] + 12
    data = np.frombuffer(b"".join(map(frame, payloads)), np.uint8)
    return Records(
        np.arange(len(payloads)), data, starts, starts + [len(payload) for payload in payloads]
    )


def decode(payloads, vocab_size=VOCAB):
    decoder, records = Decoder(LENGTHS, vocab_size), records_of(payloads)
    cut = len(payloads) // 2
    pieces = [(records, slice(0, cut)), (records, slice(cut, len(payloads)))]
    return decoder.layout.split(*decoder.decode(pieces, "record {}".format))


def takes(payload):
    """Whether the kernel itself decodes the message."""
    decoder, records = Decoder(LENGTHS, VOCAB), records_of([payload])
    batch = decoder.layout.split(
        np.empty(sum(LENGTHS.values()) - PREDICTIONS, np.int64), np.empty(PREDICTIONS, np.float32)
    )
    weights = batch.pop("masked_lm_weights")
    limits = decoder._limits
    return 1 == decode_rows(
        records.data, records.starts, records.ends, 0, limits, tuple(batch.values()), weights
    )


def assert_equal(batch, examples):
    for feature in FEATURES:
        column = batch[feature.name]
        assert column.dtype == feature.dtype and column.shape == (
            len(examples),
            LENGTHS[feature.name],
        )
        assert column.flags.c_contiguous
        assert np.array_equal(column, [example[feature.name] for example in examples])


# Writing messages by hand: a field, the entries of the map, a list that is not packed.


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes((value,))


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def entry(name, values, is_packed=True, kind=None):
    if kind is None:
        kind = 2 if name == "masked_lm_weights" else 3
    numbers = [struct.pack("<f", value) if kind == 2 else varint(value % 2**64) for value in values]
    key = b"\x0d" if kind == 2 else b"\x08"
    packed = (
        field(1, b"".join(numbers)) if is_packed else b"".join(key + number for number in numbers)
    )
    return field(1, field(1, name.encode()) + field(2, field(kind, packed)))


def message(values, **options):
    return field(1, b"".join(entry(name, column, **options) for name, column in values.items()))


@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_equal_to_what_was_encoded(generator, count):
    examples = [random_example(generator) for _ in range(count)]
    payloads = [encode_example(example) for example in examples]
    assert all(map(takes, payloads))
    assert_equal(decode(payloads), [decode_example(payload, "") for payload in payloads])


@given(st.permutations([feature.name for feature in FEATURES]))
def test_features_in_any_order(names):
    values = random_example(random.Random(1))
    payload = message({name: values[name] for name in names})
    assert takes(payload)
    assert_equal(decode([payload]), [decode_example(payload, "")])


def test_what_only_the_readable_decoder_takes_is_decoded_too():
    examples = [random_example(random.Random(n)) for n in range(3)]
    unpacked = message(examples[1], is_packed=False)
    # A field that tf.train.Example does not have.
    long_varint = encode_example(examples[2]) + b"\x10\x01"
    payloads = [encode_example(examples[0]), unpacked, long_varint]
    assert [takes(payload) for payload in payloads] == [True, False, False]
    batch = decode(payloads)
    assert_equal(batch, [decode_example(payload, "") for payload in payloads])


def test_tensorflow_writes_what_the_kernel_takes():
    import tensorflow as tf

    values = random_example(random.Random(3))
    lists = {
        name: tf.train.Feature(float_list=tf.train.FloatList(value=column))
        if name == "masked_lm_weights"
        else tf.train.Feature(int64_list=tf.train.Int64List(value=column))
        for name, column in values.items()
    }
    payload = tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString()
    assert takes(payload)
    assert_equal(decode([payload]), [decode_example(payload, "")])


@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_corrupt_messages_are_never_decoded_to_other_values(generator, changes):
    """Whatever the kernel takes, the readable decoder takes as the same; whatever it leaves is
    decoded or refused.
    """
    payload = bytearray(encode_example(random_example(generator)))
    for _ in range(changes):
        payload[generator.randrange(len(payload))] = generator.choice(
            (0, 1, 10, 18, 26, 127, 128, 255, generator.randrange(256))
        )
    payload = bytes(payload[: generator.choice((len(payload), generator.randrange(len(payload))))])
    try:
        expected = decode_example(payload, "")
        batch = decode([payload])
    except DataError:
        assert not takes(payload)
    else:
        assert_equal(batch, [expected])


def wrong(**changes):
    return message(synthetic_example(5) | changes)


@pytest.mark.parametrize(
    "payload, words",
    [
        (wrong(input_mask=[1] * 15), "input_mask has 15 values, expected 16"),
        (wrong(segment_ids=[1] * 17), "segment_ids has 17 values, expected 16"),
        (wrong(next_sentence_labels=[]), "next_sentence_labels has 0 values, expected 1"),
        (wrong(masked_lm_weights=[1.0] * 2), "masked_lm_weights has 2 values, expected 3"),
        (
            wrong(input_ids=[VOCAB] * 16),
            "input_ids holds token id 1000, expected 0 to below vocab_size 1000",
        ),
        (wrong(masked_lm_ids=[0, -1, 0]), "masked_lm_ids holds token id -1"),
        (
            wrong(masked_lm_positions=[0, 16, 1]),
            "masked_lm_positions holds 16, expected 0 to below 16",
        ),
        (
            wrong(masked_lm_positions=[0, -(2**63), 1]),
            "masked_lm_positions holds -9223372036854775808",
        ),
        (wrong(segment_ids=[2**31] * 16), "segment_ids holds 2147483648"),
        (wrong(extra=[1]), "unknown: extra"),
        (
            message({k: v for k, v in synthetic_example(5).items() if k != "input_mask"}),
            "missing: input_mask",
        ),
        (message(synthetic_example(5), kind=2), "holds float32, expected int64"),
        (
            wrong(masked_lm_weights=[]).replace(
                b"\x12\x04\x12\x02\x0a\x00", b"\x12\x04\x1a\x02\x0a\x00"
            ),
            "masked_lm_weights holds int64",
        ),
        (b"", "missing: "),
        (b"\xff" * 50, "not a tf.train.Example"),
    ],
)
def test_what_is_wrong_is_reported_with_its_place(payload, words):
    good = encode_example(synthetic_example(4))
    assert takes(good) and not takes(payload)
    with pytest.raises(DataError, match=f"record 1: .*{words}"):
        decode([good, payload, good])


def test_ids_are_not_limited_without_a_vocabulary():
    payload = wrong(input_ids=[2**31 - 1] + [70_000] * 15)
    assert decode([payload], vocab_size=None)["input_ids"].tolist() == [[2**31 - 1] + [70_000] * 15]


def test_wrong_checksum_of_the_data():
    payloads = [encode_example(synthetic_example(n)) for n in range(3)]
    records = records_of(payloads)
    data = records.data.copy()
    data[records.ends[1] - 1] ^= 1  # a value that would still decode
    assert data[records.ends[1] : records.ends[1] + 4].tobytes() == checksum_bytes(payloads[1])
    with pytest.raises(DataError, match="record 1: the record's data does not have its checksum"):
        Decoder(LENGTHS).decode([(records._replace(data=data), slice(0, 3))], "record {}".format)
