"""bert/examples/tfrecord.py and bert/examples/example.py against TensorFlow, and make_idx.py
against DALI's own tfrecord2idx.
"""

import gzip
import os
import runpy
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, assert_refused, run_script, synthetic_example
from hypothesis import given
from hypothesis import strategies as st

from bert.common.files import DataError
from bert.examples import records
from bert.examples.example import FEATURES, decode_example
from bert.examples.tfrecord import (
    CHECKSUM_BYTES,
    HEADER_BYTES,
    TFRecordFile,
    frame,
    masked_crc32c,
    write_index,
)
from tests.reference.example import encode_example


def as_tensorflow_example(values):
    import tensorflow as tf

    features = {
        name: tf.train.Feature(float_list=tf.train.FloatList(value=column))
        if isinstance(column[0], float)
        else tf.train.Feature(int64_list=tf.train.Int64List(value=column))
        for name, column in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def sealed(payloads):
    """The payloads as TFRecords, all in one buffer."""
    frames = [bytes(HEADER_BYTES) + payload + bytes(CHECKSUM_BYTES) for payload in payloads]
    buffer = np.frombuffer(bytearray(b"".join(frames)), np.uint8)
    records.seal_records(buffer, np.cumsum([len(frame) for frame in frames]))
    return buffer.tobytes()


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=9))
def test_many_records_sealed_at_once(payloads):
    assert sealed(payloads) == b"".join(map(frame, payloads))


@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=9),
    st.integers(0, 500),
    st.integers(1, 255),
)
def test_many_records_checked_at_once(payloads, place, change):
    def found(data):
        buffer = np.frombuffer(data, np.uint8)
        starts, ends = records.find_payloads(buffer)
        is_right = records.have_checksums(buffer, starts, ends).tolist()
        return [data[start:end] for start, end in zip(starts, ends)], is_right

    data = bytearray(sealed(payloads))
    assert found(bytes(data)) == (payloads, [True] * len(payloads))
    sizes = np.cumsum([16 + len(payload) for payload in payloads])
    place %= len(data)
    corrupt, in_record = record_at(sizes, place)
    assert found(bytes(data[:place]))[0] == payloads[:corrupt]
    data[place] ^= change
    some, is_right = found(bytes(data))
    if in_record < HEADER_BYTES:
        assert (some, is_right) == (payloads[:corrupt], [True] * corrupt)
    else:
        assert len(some) == len(payloads) and is_right == [
            k != corrupt for k in range(len(payloads))
        ]


def record_at(sizes, place):
    """Returns the number of the record that byte `place` lies in, and the byte in that record;
    sizes: running sums.
    """
    number = int(np.searchsorted(sizes, place, side="right"))
    return number, place - (int(sizes[number - 1]) if number else 0)


def test_checksums_without_the_cpus_instruction(tmp_path):
    """A process that thinks its CPU has no SSE 4.2 uses the tables."""
    code = """
import llvmlite.binding
real = llvmlite.binding.get_host_cpu_features
llvmlite.binding.get_host_cpu_features = lambda: type(real())({**real(), "sse4.2": False})
from bert.examples import records
llvmlite.binding.get_host_cpu_features = real
from tests.examples.test_tfrecord import frame, np, sealed
assert records._add_8_bytes is records._add_by_table
payloads = [bytes((k * k + n) % 251 for k in range(n)) for n in (0, 1, 7, 8, 9, 2700)]
assert sealed(payloads) == b"".join(map(frame, payloads))
buffer = np.frombuffer(sealed(payloads), np.uint8)
assert records.have_checksums(buffer, *records.find_payloads(buffer)).tolist() == [True] * 6
"""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


ids = st.integers(0, 65535)
column = st.lists(ids, min_size=1, max_size=300)
examples = st.fixed_dictionaries(
    {
        feature.name: st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=80)
        if feature.dtype == "float32"
        else column
        for feature in FEATURES
    }
)


@given(examples)
def test_encoding_is_tensorflows_and_decoding_its_inverse(values):
    encoded = encode_example(values)
    assert encoded == as_tensorflow_example(values).SerializeToString(deterministic=True)
    decoded = decode_example(encoded, "here")
    assert {name: array.tolist() for name, array in decoded.items()} == values


def test_decodes_negative_and_unpacked_values_and_any_order():
    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    values = synthetic_example(5)
    entries = []
    for feature in reversed(FEATURES):
        if feature.name == "next_sentence_labels":
            value_list = field(3, b"\x08" + b"\xff" * 9 + b"\x01")  # -1, not packed
        elif feature.dtype == "float32":
            value_list = field(
                2, b"".join(b"\x0d" + struct.pack("<f", value) for value in values[feature.name])
            )
        else:
            value_list = field(
                3, b"".join(b"\x08" + bytes([value % 128]) for value in values[feature.name])
            )
        entries.append(field(1, field(1, feature.name.encode()) + field(2, value_list)))
    content = b"".join(entries)
    payload = b"\x0a" + bytes([len(content) & 127 | 128, len(content) >> 7]) + content
    decoded = decode_example(payload, "here")
    assert decoded["next_sentence_labels"].tolist() == [-1]
    assert decoded["masked_lm_weights"].tolist() == values["masked_lm_weights"]
    assert decoded["input_ids"].tolist() == [value % 128 for value in values["input_ids"]]


@pytest.mark.parametrize(
    "payload", [b"", b"\x0a\xff", b"\xff" * 20, b"\x0a\x02\x0a\x00", b"no example at all"]
)
def test_refuses_what_is_no_example(payload):
    with pytest.raises(DataError, match="^here: "):
        decode_example(payload, "here")


def test_wrong_type_is_reported():
    values = synthetic_example(1) | {"masked_lm_weights": [1, 1, 1]}
    import tensorflow as tf

    example = as_tensorflow_example(synthetic_example(1))
    example.features.feature["masked_lm_weights"].CopyFrom(
        tf.train.Feature(int64_list=tf.train.Int64List(value=values["masked_lm_weights"]))
    )
    with pytest.raises(DataError, match="masked_lm_weights holds int64, expected float32"):
        decode_example(example.SerializeToString(), "here")


def test_checksum_is_tensorflows():
    # The first record's length checksum of any TFRecord with a payload of 0 bytes, as TensorFlow
    # writes it.
    assert masked_crc32c(bytes(8)) == 0x07980329
    assert frame(b"") == bytes(8) + struct.pack("<I", 0x07980329) + struct.pack(
        "<I", masked_crc32c(b"")
    )


def test_index_equals_dalis(tfrecord_folder, tmp_path, monkeypatch):
    """Without TensorFlow DALI's program opens files itself, and need not import it for each."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    tfrecord2idx = os.path.join(os.path.dirname(sys.executable), "tfrecord2idx")
    paths, index_paths = tfrecord_folder([1, 200, 17])
    process = run_script(
        "make_idx.py",
        f"--tfrecord_train={tmp_path}/part-0000[01]",
        f"--tfrecord_eval={paths[2]}",
        f"--output_idx={tmp_path}/idx",
    )
    assert "3 of 3 files, 218 records" in process.stdout
    for path, split in zip(paths, ("train", "train", "eval")):
        name = os.path.basename(path)
        monkeypatch.setattr(sys, "argv", [tfrecord2idx, path, f"{tmp_path}/dali"])
        runpy.run_path(tfrecord2idx)
        assert (tmp_path / "idx" / split / f"{name}.idx").read_bytes() == (
            tmp_path / "dali"
        ).read_bytes()


def test_folder_as_source(tfrecord_folder, tmp_path):
    paths, index_paths = tfrecord_folder([2, 3])
    for path in index_paths:
        os.remove(path)
    run_script("make_idx.py", f"--tfrecord_train={tmp_path}", f"--output_idx={tmp_path}/idx")
    assert sorted(os.listdir(tmp_path / "idx/train")) == ["part-00000.idx", "part-00001.idx"]
    assert not (tmp_path / "idx/eval").exists()


@pytest.mark.parametrize(
    "corrupt, words",
    [
        (lambda data: data[:-1], ("byte {last}", "the file ends")),
        (lambda data: data + b"1234", ("byte {end}", "the file ends 4 bytes into a record header")),
        (lambda data: data[:5] + b"\x01" + data[6:], ("byte 0", "checksum is wrong")),
        (lambda data: b"", ("0 bytes",)),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            ("byte 0", "git lfs pull"),
        ),
        (gzip.compress, ("byte 0", "a compressed file: unpack it")),
        (lambda data: b"<!DOCTYPE html><html>Not found</html>", ("byte 0", "web page")),
    ],
)
def test_corrupt_file_gets_no_index_and_does_not_stop_the_others(
    tfrecord_folder, tmp_path, corrupt, words
):
    paths, index_paths = tfrecord_folder([3, 4])
    data = (tmp_path / "part-00000").read_bytes()
    with TFRecordFile(paths[0]) as records:
        last = list(records.extents())[-1][0]
    (tmp_path / "part-00000").write_bytes(corrupt(data))
    (tmp_path / "idx/train").mkdir(parents=True)
    process = run_script(
        "make_idx.py",
        f"--tfrecord_train={paths[0]},{paths[1]}",
        f"--output_idx={tmp_path}/idx",
        check=False,
    )
    assert_refused(process, paths[0], *(word.format(last=last, end=len(data)) for word in words))
    assert os.listdir(tmp_path / "idx/train") == ["part-00001.idx"]


def test_flipped_payload_bit_is_found(tfrecord_folder, tmp_path):
    (path,), _ = tfrecord_folder([3])
    data = bytearray((tmp_path / path).read_bytes())
    data[-20] ^= 4
    (tmp_path / path).write_bytes(data)
    with TFRecordFile(path) as records:
        *whole, last = records.extents()
        for extent in whole:
            records.payload(*extent)
        with pytest.raises(
            DataError, match=f"byte {last[0]}: the record's data does not have its checksum"
        ):
            records.payload(*last)


def test_refused_flags(tfrecord_folder, tmp_path):
    assert_refused(
        run_script("make_idx.py", f"--output_idx={tmp_path}", check=False), "nothing to index"
    )
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    paths, _ = tfrecord_folder([1])
    for folder in "ab":
        (tmp_path / folder / "same").write_bytes((tmp_path / paths[0]).read_bytes())
    process = run_script(
        "make_idx.py",
        f"--tfrecord_train={tmp_path}/?/same",
        f"--tfrecord_eval={tmp_path}/absent",
        f"--output_idx={tmp_path}",
        check=False,
    )
    assert_refused(process, "share the index", "absent")


def test_older_index_of_a_corrupt_file_is_removed(tfrecord_folder, tmp_path):
    (path,), (index_path,) = tfrecord_folder([3])
    assert np.loadtxt(index_path).shape == (3, 2)
    (tmp_path / path).write_bytes((tmp_path / path).read_bytes()[:-1])
    with pytest.raises(DataError):
        write_index(path, index_path)
    assert os.listdir(tmp_path) == [os.path.basename(path)]
