"""bert/generation/wordpiece.py against tokenization.py, on every character;
bert/generation/instances.py against random.Random.
"""

import functools
import itertools
import random
import sys
import unicodedata

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import tokenization
from bert.generation import instances
from bert.generation.wordpiece import TextTokenizer, join
from tokenization import FullTokenizer, as_unicode_11

VOCAB = ROOT / "vocab.txt"


@functools.cache
def make_tokenizers(kind):
    full = FullTokenizer(VOCAB, kind != "cased", preserve_unused_tokens=kind == "preserving")
    return full, TextTokenizer(full)


@pytest.fixture(scope="module", params=["uncased", "cased", "preserving"])
def tokenizers(request):
    return make_tokenizers(request.param)


def expected(full, text):
    """Returns (ids of each sentence, sentences of each document) as tokenization.py and the
    readable program have them.
    """
    sentences, documents = [], [0]
    # Many characters are the same one in Unicode 11: one that means nothing.
    tokenize = functools.cache(full.tokenize)
    for line in text.removesuffix("\n").split("\n") if text else []:
        if not line.strip():
            documents.append(0)
        elif ids := full.convert_tokens_to_ids(tokenize(as_unicode_11(line.strip()))):
            sentences.append(ids)
            documents[-1] += 1
    return sentences, [size for size in documents if size]


def found(fast, text):
    corpus = join([fast.tokenize(text.encode())])
    starts = corpus.sentence_starts.tolist()
    return [corpus.tokens[a:b].tolist() for a, b in zip(starts, starts[1:])], np.diff(
        corpus.document_starts
    ).tolist()


def interesting_code_points():
    """All assigned characters, and every 61st of the others."""
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category == "Cs" or chr(code) in "\n\r":
            continue
        if category not in ("Cn", "Co") or code % 61 == 0:
            yield code


@pytest.mark.parametrize("kind", ["uncased", pytest.param("cased", marks=pytest.mark.slow)])
def test_every_character_in_several_contexts(kind, monkeypatch):
    """Ideographs, which are more than all others, have one context each in which it shows whether
    they stand alone; "preserving" has the tables of "uncased".
    """
    full, fast = make_tokenizers(kind)
    for name in ("_is_cjk_ideograph", "_is_punctuation", "_is_control", "_is_whitespace"):
        # asked about each character once, and not ten times: half of the time
        monkeypatch.setattr(tokenization, name, functools.cache(getattr(tokenization, name)))
    chars = list(map(chr, interesting_code_points()))
    assert len(chars) > 140_000
    ideographs = list(filter(tokenization._is_cjk_ideograph, chars))
    others = set(chars) - set(ideographs)
    lines = [[char] * 6 for char in sorted(others)]
    lines += [[a, a, b, b, c, d] for a, b, c, d in zip(*[iter(ideographs + ideographs[-3:])] * 4)]
    assert set(itertools.chain.from_iterable(lines)) == set(chars)
    text = "\n".join(map("the{}re {} {}{}a\u0301{}, \u039f{}".format, *zip(*lines)))
    assert found(fast, text) == expected(full, text)


def test_every_character_alone_on_a_line(tokenizers):
    """Blank or not, which decides about documents."""
    full, fast = tokenizers
    text = "\n".join(f"x\n{chr(code)}" for code in interesting_code_points() if code < 0x3100)
    assert found(fast, text) == expected(full, text)


hard = (
    "\u03a3\u0345\u302e\u1d165\u0130\u037e\u1fef\uac01\uf900"
    "\u2028\u0085\u00a0\u200b\u0000\ufffd\U0001d15e"
)
characters = st.one_of(
    st.sampled_from("aeT .,-[]#\t\n0" + hard),
    st.characters(exclude_categories=["Cs"], exclude_characters="\r"),
)


@given(st.text(characters, max_size=120))
def test_any_text(tokenizers, text):
    full, fast = tokenizers
    assert found(fast, text) == expected(full, text)


words = st.text("abcXYZ059", min_size=1, max_size=20)
separators = st.sampled_from(
    [
        " ", " ", "\n", ", ", "-", "[", "\t", "\u00e9", "\u4e2d", "\u0301", "\u200b", "\u03a3",
        "@", "`", "{", "/", ":",
    ]
)  # fmt: skip


@given(st.lists(st.tuples(words, separators), max_size=30))
def test_words_met_before(tokenizers, pairs):
    full, fast = tokenizers
    text = "".join(word + separator for word, separator in pairs)
    for _ in range(2):
        assert found(fast, text) == expected(full, text)


@pytest.mark.parametrize(
    "text",
    ["", "\n", "x", " \n x", "[unused7] [unused99999]x [unused1]", "un" * 99 + "aa",
     "un" * 100 + "a", "\u00e9" * 200, "\u00e9" * 201 + " b",
     "\u4e2d" * 300, "a" * 5000 + "\u03a3 b", "\u03a3" * 201,
     "abcdefghijklmnop abcdefghijklmnopq" * 3, "no line end\n "],
)  # fmt: skip
def test_edges(tokenizers, text):
    full, fast = tokenizers
    for _ in range(2):  # the second time from the cache
        assert found(fast, text) == expected(full, text)


def test_files_are_one_corpus():
    fast = TextTokenizer(FullTokenizer(VOCAB))
    texts = [b"one\n\ntwo", b"three\n\n", b"", b"four\n"]
    corpus = join([fast.tokenize(text) for text in texts])
    assert corpus.document_starts.tolist() == [0, 1, 3, 4]
    assert corpus.sentence_starts.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", [0, 12345, 2**80, -7])
def test_generator_is_pythons(seed):
    ours, theirs = instances.new_generator(seed), random.Random(seed)
    for _ in range(3):
        assert [instances.random_double(ours) for _ in range(1000)] == [
            theirs.random() for _ in range(1000)
        ]
        assert [instances.below(n, ours) for n in range(1, 2000)] == [
            theirs.randint(0, n - 1) for n in range(1, 2000)
        ]
        values, expected_values = np.arange(3000), list(range(3000))
        instances.shuffle(values, ours)
        theirs.shuffle(expected_values)
        assert values.tolist() == expected_values


@given(length=st.integers(0, 700), head=st.integers(0, 700), seed=st.integers(0, 1000))
def test_head_of_a_shuffle(length, head, seed):
    ours, theirs = instances.new_generator(seed), random.Random(seed)
    values, expected_values = np.arange(700, dtype=np.uint16), list(range(length))
    instances.shuffle_head(values, length, min(head, length), ours)
    theirs.shuffle(expected_values)
    assert values[: min(head, length)].tolist() == expected_values[:head]
    assert instances.random_double(ours) == theirs.random()
