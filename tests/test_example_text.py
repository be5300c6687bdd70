"""bert/example_text.py and --show_examples: an example in words."""

import re

from conftest import ROOT, UNICODE_TEXT, create

from bert.example import decode_example
from bert.example_text import example_as_text
from tests.reference.example import encode_example

TOKENS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "##s", "ran"]


def example(**changed):
    values = {
        "input_ids": [1, 4, 3, 6, 2, 7, 2, 0],
        "input_mask": [1, 1, 1, 1, 1, 1, 1, 0],
        "segment_ids": [0, 0, 0, 0, 0, 1, 1, 0],
        "masked_lm_positions": [2, 5, 0],
        "masked_lm_ids": [5, 7, 0],
        "masked_lm_weights": [1.0, 1.0, 0.0],
        "next_sentence_labels": [1],
    }
    return decode_example(encode_example(values | changed), "here")


def test_words():
    assert example_as_text(example(), TOKENS).split("\n") == [
        "A: [CLS] the [MASK] ##s [SEP]",
        "B: ran [SEP]",
        "masked: 2 [MASK] <- dog; 5 ran <- ran;",
        "next sentence label: 1 (B is from another document)",
        "length: 7 of 8 tokens, 2 of 3 predictions",
    ]
    assert "label: 0 (B follows A)" in example_as_text(example(next_sentence_labels=[0]), TOKENS)


def test_ids_beyond_the_vocabulary_and_positions_in_the_padding():
    text = example_as_text(example(input_ids=[1, 4, 9, 6, 2, 7, 2, 0], masked_lm_positions=[2, 7, 0]), TOKENS)
    assert "the <id 9> ##s" in text and "7 <padding> <- ran;" in text


def test_show_examples(tmp_path):
    stdout = create(UNICODE_TEXT, tmp_path / "out", "--show_examples=3", "--dupe_factor=1", "--max_seq_length=64").stdout
    assert re.findall(r"record (\d+) at byte", stdout) == ["0", "1", "2"]
    assert stdout.count("A: [CLS]") == 3 and "[MASK] <- " in stdout
    assert stdout.splitlines()[-1].startswith("25 documents -> ")
    vocab = set((ROOT / "vocab.txt").read_text().split("\n"))
    words = [word for line in stdout.splitlines() if line.startswith(("A:", "B:")) for word in line.split()[1:]]
    assert len(words) > 20 and set(words) <= vocab


def test_more_than_there_are(tmp_path):
    (tmp_path / "text").write_text("one\ntwo\n")
    stdout = create(tmp_path / "text", tmp_path / "out", "--show_examples=1000", "--dupe_factor=1").stdout
    assert f"-> {stdout.count('***') // 2} records" in stdout
