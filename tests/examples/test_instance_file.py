"""bert/examples/instance_file.py and instances.py: the examples of a TFRecord file in an eighth of
the space.
"""

import json
import shutil
import struct

import google_crc32c
import numpy as np
import pytest
from conftest import UNICODE_TEXT
from examples_of_text import make_examples, tokenizer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from bert.common.files import DataError
from bert.examples.batch import BatchLayout
from bert.examples.encoding import encode_records
from bert.examples.example_file import open_examples
from bert.examples.instance_file import InstanceFile, is_instance_file, vocabulary_checksum
from bert.examples.instances import CHANGE, INSTANCE, InstanceBuffer, Instances, fill_batch
from tests.reference.instances import example_of


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(TFRecord file, instance file) of the same examples."""
    folder = tmp_path_factory.mktemp("files")
    (tfrecord,), (instances,) = make_examples(folder, ["part"])
    return tfrecord, instances


@pytest.fixture
def copied(files, tmp_path):
    return shutil.copy(files[1], tmp_path / "copy")


def test_examples_are_those_of_the_tfrecord_file(files):
    records, instances = map(open_examples, files)
    assert instances.count() == records.count() and instances.lengths == records.lengths
    pairs = zip(records.examples(0, 10**6), instances.examples(0, 10**6), strict=True)
    for (_, expected), (_, found) in pairs:
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert values.dtype == found[name].dtype and (values == found[name]).all()


def test_batches_are_those_of_the_tfrecord_file(files):
    columns = []
    for file in map(open_examples, files):
        batches = list(file.batches(file.lengths, 30_522))
        columns.append({name: np.concatenate([b[name] for b in batches]) for name in batches[0]})
    for name, values in columns[0].items():
        assert (values == columns[1][name]).all() and len(values) == open_examples(files[0]).count()


def test_header_says_what_it_was_made_of(files):
    header = InstanceFile(files[1]).header
    with open(files[0], "rb") as file:
        assert header.tfrecord_bytes == len(file.read())
    made_of, text = json.loads(header.made_of), UNICODE_TEXT.read_bytes()
    assert made_of["texts"] == [{"bytes": len(text), "crc32c": f"{google_crc32c.value(text):08x}"}]
    assert made_of["settings"]["dupe_factor"] == 2 and made_of["unicode"] == "11.0.0"
    assert header.vocabulary == vocabulary_checksum(tokenizer().vocab)
    assert (header.max_seq_length, header.max_predictions_per_seq) == (64, 10)
    assert (header.vocab_size, header.cls_id, header.sep_id) == (30_522, 101, 102)


def test_layout_is_that_of_safetensors(files):
    tensors, instances = load_file(files[1]), InstanceFile(files[1]).instances
    assert (tensors["instances"].view(INSTANCE)[:, 0] == instances.rows).all()
    assert (tensors["changes"].view(CHANGE)[:, 0] == instances.changes).all()
    assert (tensors["tokens"] == instances.tokens).all()
    with open(files[1], "rb") as file:
        content = file.read()
    assert google_crc32c.value(content[:-4]) == int.from_bytes(content[-4:], "little")


def test_changes_lie_in_the_order_of_the_instances(files):
    rows = InstanceFile(files[1]).instances.rows
    assert (np.diff(rows["first_change"]) == rows["num_changes"][:-1]).all()


def test_every_second_record_goes_to_the_second_file(files, tmp_path):
    records, parts = make_examples(tmp_path, ["a", "b"])
    for tfrecord, instances in zip(records, parts):
        file = InstanceFile(instances)
        blocks = encode_records(file.instances, file.header.special_ids, 64, 10)
        with open(tfrecord, "rb") as expected:
            assert b"".join(bytes(data) for data, _ in blocks) == expected.read()
    whole = InstanceFile(files[1]).num_records
    assert [InstanceFile(path).num_records for path in parts] == [-(-whole // 2), whole // 2]


def test_same_bytes_every_time(files, tmp_path):
    _, (again,) = make_examples(tmp_path, ["part"])
    with open(files[1], "rb") as first, open(again, "rb") as second:
        assert first.read() == second.read()


# --------------------------------------------------------------------------------------------------
# Kernels, against their reference implementation

lengths = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def tables(draw):
    """Instances over 40 tokens: any ranges, any positions."""
    tokens = np.array(draw(st.lists(st.integers(0, 65_535), min_size=40, max_size=40)), np.uint16)
    rows, changes = [], []
    for a_length, b_length in draw(st.lists(lengths, min_size=1, max_size=6)):
        a_start, b_start = draw(st.integers(0, 40 - a_length)), draw(st.integers(0, 40 - b_length))
        length = a_length + b_length + 3
        positions = sorted(draw(st.sets(st.integers(0, length - 1), max_size=5)))
        label = draw(st.integers(0, 1))
        rows.append((a_start, b_start, len(changes), a_length, b_length, len(positions), label))
        changes += [(position, draw(st.integers(0, 65_535))) for position in positions]
    return Instances(np.array(rows, INSTANCE), tokens, np.array(changes, CHANGE))


@given(tables(), st.data())
def test_batch_equals_reference(table, data):
    numbers = np.array(
        data.draw(st.lists(st.integers(0, len(table.rows) - 1), min_size=1, max_size=8))
    )
    buffer = InstanceBuffer(len(numbers), 24, 6)
    half = len(numbers) // 2
    assert buffer.append(table, numbers[:half]) is None
    assert buffer.append(table, numbers[half:]) is None
    layout = BatchLayout({
        "input_ids": 24, "input_mask": 24, "segment_ids": 24, "masked_lm_ids": 6,
        "masked_lm_positions": 6, "masked_lm_weights": 6, "next_sentence_labels": 1,
    })  # fmt: skip
    batch = layout.split(*layout.empty(len(numbers)))
    copied = buffer.instances()
    fill_batch(copied, np.arange(len(numbers)), (101, 102), batch)
    assert copied.lengths().tolist() == [table.lengths()[number] for number in numbers]
    for place, number in enumerate(numbers):
        expected = example_of(table, number, (101, 102), 24, 6)
        assert {name: rows[place].tolist() for name, rows in batch.items()} == expected


@pytest.mark.parametrize(
    "field, value",
    [
        ("a_start", -1), ("a_start", 39), ("b_start", -(2**62)), ("b_start", 2**62),
        ("first_change", -1), ("first_change", 2), ("a_length", 60_000), ("a_length", 20),
        ("b_length", 60_000), ("num_changes", 3), ("num_changes", 60_000),
    ],
)  # fmt: skip
def test_impossible_instance_is_not_copied(field, value):
    rows = np.array([(0, 5, 0, 2, 2, 2, 0)] * 2, INSTANCE)
    table = Instances(
        rows, np.zeros(40, np.uint16), np.array([(1, 1), (2, 1), (3, 1), (9, 1)], CHANGE)
    )
    rows[1][field] = value
    assert InstanceBuffer(4, 16, 2).append(table, np.array([0, 1])) == 1


# --------------------------------------------------------------------------------------------------
# Files that are none


def changed_header(content, old, new):
    """The file's contents with other bytes in its header, as long as before."""
    assert content.count(old) == 1 and len(old) == len(new)
    return content.replace(old, new)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda content: content[:-1], "the file is cut off or was added to"),
        (lambda content: content[: len(content) // 2], "the file is cut off or was added to"),
        (lambda content: content + b"\0", "the file is cut off or was added to"),
        (lambda content: changed_header(content, b'"version":"1"', b'"version":"2"'),
         "version '2' of the instance format, expected '1'"),
        (lambda content: content[:60], "its header is not JSON"),
        (lambda content: content[:600], "its header is not JSON"),
        (lambda content: b"\xff" * 8 + content[8:], "its header is not JSON"),
        (lambda content: changed_header(content, b'"documents":"', b'"document_":"'),
         "its header is not one of an instance file"),
        (lambda content: changed_header(content, b'"vocab_size":"30522"', b'"vocab_size":"3O522"'),
         "its header is not one of an instance file"),
        (lambda content: changed_header(content, b'"dtype":"U8","shape":[4]',
                                        b'"dtype":"U8","shape":[5]'),
         "its header is not one of an instance file"),
        (lambda content: b"", "byte 0: no instance file begins here"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n" + b" " * 99,
         "a Git LFS pointer"),
        (lambda content: struct.pack("<Q", 40) + b'{"__metadata__":{"format":"pt"}}' + b" " * 99,
         "byte 0: no instance file begins here"),
    ],
)  # fmt: skip
def test_file_that_is_none(copied, change, expected):
    with open(copied, "rb") as file:
        content = change(file.read())
    with open(copied, "wb") as file:
        file.write(content)
    with pytest.raises(DataError) as error:
        InstanceFile(copied)
    assert str(error.value).startswith(f"{copied}: ") and expected in str(error.value)


@pytest.mark.parametrize("place", [300, 0.3, 0.6, 0.95, -1])
def test_flipped_bit_is_found(copied, place):
    with open(copied, "r+b") as file:
        size = file.seek(0, 2)
        file.seek(int(place * size) if isinstance(place, float) else place % size)
        (value,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([value ^ 1]))
    try:
        file = InstanceFile(copied)
    except DataError as error:  # in the header
        assert place == 300 and str(copied) in str(error)
        return
    with pytest.raises(DataError, match=f"{copied}: the file does not have its checksum"):
        file.check_contents()


def test_change_of_the_file_is_found(copied):
    file = InstanceFile(copied)
    file.check_unchanged()
    with open(copied, "r+b") as other:
        other.truncate(1000)
    with pytest.raises(DataError, match=f"{copied}: the file changed"):
        file.check_unchanged()
    (copied.parent / "copy").unlink()
    with pytest.raises(DataError, match=f"{copied}: the file changed"):
        file.check_unchanged()


def test_kinds_are_told_apart(files):
    assert [is_instance_file(path) for path in files] == [False, True]
