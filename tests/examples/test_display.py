"""bert/examples/display.py and --show_examples: an example in words."""

import re

import pytest
from conftest import EXAMPLE, MAT, ON, PIECES, ROOT, THE, UNICODE_TEXT, S, create

from bert.examples.display import example_words, join_pieces
from bert.examples.example import decode_example
from bert.examples.tfrecord import TFRecordFile
from tests.reference.example import encode_example


def words(**changed):
    return example_words(decode_example(encode_example(EXAMPLE | changed), "here"), PIECES)


def test_example_in_words():
    assert words().split("\n") == [
        "A: the {[MASK]: cat} ##s",
        "B: {on: sat} on {=the} mat",
        "next_sentence_labels: 1, B is from another place",
        "10 of 12 tokens, 3 of 4 to predict",
    ]
    assert "next_sentence_labels: 0, B follows A" in words(next_sentence_labels=[0])


def test_special_tokens_put_in_by_masking_are_shown():
    assert "A: the {[SEP]: cat} ##s\n" in words(
        input_ids=[1, THE, 2, S, 2, ON, ON, THE, MAT, 2, 0, 0]
    )


def test_ids_beyond_the_vocabulary_and_positions_without_text():
    text = words(
        input_ids=[1, 40000, 3, S, 2, ON, ON, THE, MAT, 2, 0, 0], masked_lm_positions=[2, 11, 12, 0]
    )
    assert "A: <id 40000> {[MASK]: cat} ##s\nB: on on the mat\n" in text
    assert "to predict outside the text: position 11: sat; position 12: the\n" in text


def test_long_segments_are_wrapped():
    size = 200
    text = words(
        input_ids=[MAT] * size, input_mask=[1] * size, segment_ids=[0] * size,
        masked_lm_weights=[0.0] * 4
    ).split("\n")  # fmt: skip
    assert max(map(len, text)) <= 120 and text[1].startswith("    mat mat")
    assert " ".join(text).count("mat") == size


@pytest.mark.parametrize(
    "pieces, text",
    [
        (["the", "cat", "##s", "{=on}", "##s", "##x"], "the cats {=on} ##sx"),
        ([], ""),
        (["##s"], "##s"),
    ],
)
def test_pieces_are_joined(pieces, text):
    assert join_pieces(pieces) == text


def test_show_examples(tmp_path):
    stdout = create(
        UNICODE_TEXT,
        tmp_path / "out",
        "--show_examples=3",
        "--dupe_factor=1",
        "--max_seq_length=64",
    ).stdout
    assert re.findall(r"record (\d+) at byte", stdout) == ["0", "1", "2"]
    assert stdout.splitlines()[-1].startswith("25 documents -> ")
    pieces = (ROOT / "vocab.txt").read_text().split("\n")
    with TFRecordFile(tmp_path / "out") as records:
        shown = [
            example_words(decode_example(records.payload(*extent), ""), pieces)
            for extent in records.extents()
        ][:3]
    assert all(f"***\n{text}\n" in stdout for text in shown) and "{[MASK]: " in stdout


def test_more_than_there_are(tmp_path):
    (tmp_path / "text").write_text("one\ntwo\n")
    stdout = create(
        tmp_path / "text", tmp_path / "out", "--show_examples=1000", "--dupe_factor=1"
    ).stdout
    assert f"-> {stdout.count('***') // 2} records" in stdout
