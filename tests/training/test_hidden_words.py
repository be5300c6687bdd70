"""fill_mask.py: which words it hides, what it prints, and that it starts from a run's weights."""

import json
import random
import re

import pytest
import torch
from conftest import ROOT
from transformers import BertTokenizerFast

import fill_mask
from bert.common.files import DataError, FlagError
from bert.training import hidden_words
from bert.training.hidden_words import Hidden, Table
from bert.training.model import build_model, load_config, load_tokenizer, save_model

LONG = "The cat sat on the mat and looked at the door of the house ."


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizerFast(str(ROOT / "vocab.txt"), do_lower_case=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose model says "the" everywhere."""
    folder = tmp_path_factory.mktemp("run")
    config = load_config(ROOT / "configs/bert_tiny.json")
    tokenizer = load_tokenizer(str(ROOT / "vocab.txt"), True, config)
    model = build_model(config)
    model.cls.predictions.bias.data[tokenizer.vocab["the"]] = 100.0
    save_model(config, dict(model.named_parameters()), str(folder / "model"), tokenizer)
    flags = {"seed": 5, "init_checkpoint": None, "do_lower_case": True}
    (folder / "flags.json").write_text(json.dumps({"flags": flags, "bert_config": {}}))
    return folder


def test_a_hidden_word_is_one_piece(tokenizer):
    draw = random.Random(1)
    found = [
        hidden_words.hide_word("unaffable cats sat on embeddings , and 1984 mats", tokenizer, draw)
        for _ in range(100)
    ]
    assert {hidden.word for hidden in found} == {"cats", "sat", "on", "and", "mats"}
    for hidden in found:
        assert tokenizer.convert_ids_to_tokens(hidden.ids)[hidden.position] == "[MASK]"
        assert hidden.text.replace("[MASK]", hidden.word).startswith("unaffable cats sat on")


@pytest.mark.parametrize("sentence", ["Too short .", LONG * 3, "1 2 3 4 5 6 7 8 9 . , ;"])
def test_sentences_that_do_not_fit(tokenizer, sentence):
    assert hidden_words.hide_word(sentence, tokenizer, random.Random(1)) is None


def test_sentences_are_spread_over_articles(tokenizer):
    articles = [[f"{LONG} {name}"] * 5 for name in ("one", "two", "three")]
    found = hidden_words.hide_words(articles, tokenizer, 7, seed=1)
    names = [re.search("one|two|three|$", hidden.text)[0] for hidden in found]
    assert sum(name == "one" for name in names) <= 3 and len(found) == 7
    assert found == hidden_words.hide_words(articles, tokenizer, 7, seed=1)
    assert found != hidden_words.hide_words(articles, tokenizer, 7, seed=2)
    with pytest.raises(DataError, match="found 15 sentences .* expected 16; lower --num_sentences"):
        hidden_words.hide_words(articles, tokenizer, 16, seed=1)


def test_what_a_program_without_a_model_guesses(tokenizer):
    """Only what can be hidden: no commas, and no parts of words."""
    articles = [["the , , , cat , unaffable"], ["the cat the , unaffable , unaffable"]]
    assert hidden_words.most_frequent(articles, tokenizer, 2) == ["the", "cat"]


def test_the_table():
    sentences = [Hidden("a [MASK] | b", [], 0, "cat"), Hidden("c [MASK]", [], 0, "the")]
    table = Table(sentences, [["x", "y"]] * 2, [["dog", "cat"], ["the", "of"]], ["the", "of"])
    assert table.as_text().splitlines() == [
        "a [MASK] | b    (cat)",
        "    before training  x  y",
        "    after training   dog  [cat]",
        "c [MASK]    (the)",
        "    before training  x  y",
        "    after training   [the]  of",
        "",
        "right, of 2 hidden words:",
        "    before training            0 by the first guess,   0 among 2",
        "    after training             1 by the first guess,   2 among 2",
        "    always the of              1 by the first guess,   1 among 2",
    ]
    markdown = table.as_markdown().splitlines()
    assert markdown[2] == r"| a [MASK] \| b | cat | `x` `y` | `dog` **`cat`** |"
    assert markdown[-1] == "| always the of | 1 | 1 |"


def test_the_run_is_compared_with_its_start(run, tmp_path, capsys):
    before, after, _ = hidden_words.load_both(str(run))
    torch.manual_seed(5)
    start = build_model(load_config(ROOT / "configs/bert_tiny.json"))
    for name, weight in start.named_parameters():
        assert torch.equal(weight, dict(before.named_parameters())[name]), name
    assert not torch.equal(after.cls.predictions.bias, before.cls.predictions.bias)
    text = tmp_path / "text"
    text.write_text(f"{LONG}\n\n" * 5)
    fill_mask.main([f"--output_dir={run}", f"--text={text}", "--num_sentences=5"])
    printed = capsys.readouterr().out
    hidden = re.findall(r"    \((\w+)\)$", printed, re.M)
    assert len(hidden) == 5
    right = hidden.count("the")
    assert f"after training             {right} by the first guess" in printed
    assert len(re.findall("after training   (?:the|\\[the\\])  ", printed)) == 5


def test_start_from_a_checkpoint(run, tmp_path):
    flags = {"seed": 5, "init_checkpoint": str(run / "model")}
    (tmp_path / "flags.json").write_text(json.dumps({"flags": flags, "bert_config": {}}))
    (tmp_path / "model").symlink_to(run / "model")
    before, after, _ = hidden_words.load_both(str(tmp_path))
    for name, weight in before.named_parameters():
        assert torch.equal(weight, dict(after.named_parameters())[name]), name


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num_sentences=0"], "--num_sentences=0: expected 1 or more"),
        (["--num_guesses=-1"], "--num_guesses=-1: expected 1 or more"),
        (["--output_dir=configs"], "--output_dir: configs has no flags.json or no model/"),
    ],
)
def test_wrong_flags(run, tmp_path, flags, words):
    (tmp_path / "text").write_text(LONG)
    with pytest.raises(FlagError, match=re.escape(words)):
        fill_mask.main([f"--output_dir={run}", f"--text={tmp_path}/text", *flags])
