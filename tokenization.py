"""BERT tokenisation: the readable definition of what a token is.

    >>> tokenizer = FullTokenizer("vocab.txt", do_lower_case=True)
    >>> tokenizer.tokenize("It's unaffable.")
    ['it', "'", 's', 'una', '##ffa', '##ble', '.']

Two steps: `BasicTokenizer` cleans text and splits it at white space and punctuation,
`WordpieceTokenizer` cuts each of its tokens into pieces of the vocabulary. Names and behaviour are
those of Google's BERT and of MLPerf, so that code written for their `tokenization.py` runs on this
one. "Character" means Unicode code point. What a character is (category, lower case, decomposition)
is what Unicode 11.0 says, as in MLPerf's Python 3.7, whatever Python runs.
"""

from __future__ import annotations  # tested on Python 3.9 too

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from bert.common.files import read_bytes
from bert.common.unicode_11 import RECLASSIFIED_PUNCTUATION, Unicode11

Key = TypeVar("Key")
Value = TypeVar("Value")

# Blocks of CJK ideographs (inclusive), from Google's BERT: Chinese has no spaces between words, so
# every ideograph is a token of its own. Hangul, Hiragana and Katakana are not ideographs and stay
# joined.
_CJK_BLOCKS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip

# BERT uses no Unicode property of ideographs, so those newer than Unicode 11 are kept.
as_unicode_11 = Unicode11(RECLASSIFIED_PUNCTUATION, kept_ranges=_CJK_BLOCKS)

_UNUSED_TOKEN = re.compile(r"\[unused\d+\]")


# --------------------------------------------------------------------------------------------------
# Characters


def _is_whitespace(char):
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _is_control(char):
    """Control and format characters, which are dropped; tab and line ends are white space."""
    return char not in "\t\n\r" and unicodedata.category(char) in ("Cc", "Cf")


def _is_punctuation(char):
    """Every ASCII character except letters, digits, space and control characters, and Unicode's
    punctuation (P*).

    For Unicode `$ + < = > ^ ` | ~` are symbols; BERT splits at them too.
    """
    code = ord(char)
    is_ascii_sign = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return is_ascii_sign or unicodedata.category(char).startswith("P")


def _is_cjk_ideograph(char):
    code = ord(char)
    return any(first <= code <= last for first, last in _CJK_BLOCKS)


# --------------------------------------------------------------------------------------------------
# Text and vocabulary


def convert_to_unicode(text: str | bytes) -> str:
    """Returns `text` as str; bytes are decoded as UTF-8 (UnicodeDecodeError on an invalid byte)."""
    if isinstance(text, str):
        return text
    if isinstance(text, bytes):
        return text.decode("utf-8")
    raise ValueError(f"text must be str or bytes, found {type(text).__name__}")


def printable_text(text: str | bytes) -> str:
    """Returns `text` as str, for `print`."""
    return convert_to_unicode(text)


def whitespace_tokenize(text: str) -> list[str]:
    """Splits at white space as Python defines it; [] for blank text."""
    return text.split()


def load_vocab(vocab_file: str) -> dict[str, int]:
    """Reads one token per line into {token: id}, in file order; a repeated token keeps its first
    id.

    Raises OSError if the file cannot be read, ValueError if it is not UTF-8.
    """
    vocab: dict[str, int] = {}
    for token in vocab_lines(vocab_file):
        vocab.setdefault(token, len(vocab))
    return vocab


def vocab_lines(vocab_file: str) -> list[str]:
    """Returns the token of each line of a vocabulary. Raises what `load_vocab` raises."""
    data = read_bytes(vocab_file).replace(b"\r", b"")
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{vocab_file}: not a vocabulary: byte {error.start} is not UTF-8"
        ) from None
    return [line.strip() for line in lines]


def convert_by_vocab(vocab: Mapping[Key, Value], items: Iterable[Key]) -> list[Value]:
    """Looks up each item; KeyError with the first one that `vocab` lacks."""
    return [vocab[item] for item in items]


def convert_tokens_to_ids(vocab: Mapping[str, int], tokens: Iterable[str]) -> list[int]:
    return convert_by_vocab(vocab, tokens)


def convert_ids_to_tokens(inv_vocab: Mapping[int, str], ids: Iterable[int]) -> list[str]:
    return convert_by_vocab(inv_vocab, ids)


def validate_case_matches_checkpoint(do_lower_case: bool, init_checkpoint: str | None) -> None:
    """Raises ValueError if `do_lower_case` contradicts the name of one of Google's released models.

    The folder of a released checkpoint has its casing in its name
    (`uncased_L-24_H-1024_A-16/bert_model.ckpt`). With the wrong casing there is no error, but the
    model is worse. A path without such a name is accepted.
    """
    match = re.search(r"([A-Za-z0-9_-]+)/bert_model\.ckpt", init_checkpoint or "")
    if not match:
        return
    model = match.group(1)
    is_uncased_model = model.startswith(("uncased_", "multilingual_", "chinese_"))
    is_cased_model = model.startswith(("cased_", "multi_cased_"))
    if (is_cased_model and do_lower_case) or (is_uncased_model and not do_lower_case):
        kind, fix = ("cased", "False") if is_cased_model else ("uncased", "True")
        raise ValueError(
            f"--do_lower_case={do_lower_case} with --init_checkpoint={init_checkpoint}: {model} is "
            f"{kind}; pass --do_lower_case={fix}, or rename the folder if this is your own model"
        )


# --------------------------------------------------------------------------------------------------
# Tokenizers


class FullTokenizer:
    """Basic tokenisation, then WordPiece, with the vocabulary of a file.

    Attributes: `vocab` {token: id}, `inv_vocab` {id: token}, `basic_tokenizer`,
    `wordpiece_tokenizer`. `preserve_unused_tokens`: tokens like `[unused7]` that the vocabulary has
    are not split.
    """

    def __init__(
        self, vocab_file: str, do_lower_case: bool = True, *, preserve_unused_tokens: bool = False
    ):
        self.vocab = load_vocab(vocab_file)
        self.inv_vocab = {index: token for token, index in self.vocab.items()}
        self.basic_tokenizer = BasicTokenizer(
            do_lower_case, vocab=self.vocab if preserve_unused_tokens else ()
        )
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocab)

    def tokenize(self, text: str | bytes) -> list[str]:
        """Returns the pieces of a text (bytes: UTF-8)."""
        tokens = self.basic_tokenizer.tokenize(text)
        return [piece for token in tokens for piece in self.wordpiece_tokenizer.tokenize(token)]

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        return convert_by_vocab(self.vocab, tokens)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        return convert_by_vocab(self.inv_vocab, ids)


class BasicTokenizer:
    """Cleans text and splits it at white space, CJK ideographs and punctuation; uncased also
    lower-cases and strips accents.

    `vocab`: tokens like `[unused7]` in it are not split where white space surrounds them.
    """

    def __init__(self, do_lower_case: bool = True, vocab: Iterable[str] = ()):
        self.do_lower_case = do_lower_case
        self.preserved_tokens = {token for token in vocab if _UNUSED_TOKEN.fullmatch(token)}

    def tokenize(self, text: str | bytes) -> list[str]:
        """Returns the basic tokens of a text (bytes: UTF-8)."""
        cleaned = self._clean(as_unicode_11(convert_to_unicode(text)))
        tokens = []
        for token in whitespace_tokenize(self._separate_cjk_ideographs(cleaned)):
            if token in self.preserved_tokens:
                tokens.append(token)
                continue
            if self.do_lower_case:
                token = self._strip_accents(token.lower())
            tokens.extend(self._split_on_punctuation(token))
        # Drops empty strings, and splits at white space that lower-casing or decomposition made.
        return whitespace_tokenize(" ".join(tokens))

    @staticmethod
    def _clean(text):
        """Drops control characters, U+0000 and U+FFFD; replaces white space by a space."""
        kept = (char for char in text if not (char == "\ufffd" or _is_control(char)))
        return "".join(" " if _is_whitespace(char) else char for char in kept)

    @staticmethod
    def _separate_cjk_ideographs(text):
        return "".join(f" {char} " if _is_cjk_ideograph(char) else char for char in text)

    @staticmethod
    def _strip_accents(text):
        return "".join(
            char
            for char in unicodedata.normalize("NFD", text)
            if unicodedata.category(char) != "Mn"
        )

    @staticmethod
    def _split_on_punctuation(text):
        """Returns a list like ["it", "'", "s"], also with empty strings."""
        return "".join(f" {char} " if _is_punctuation(char) else char for char in text).split(" ")


class WordpieceTokenizer:
    """Greedy longest match from the left; pieces after the first have the prefix `##`."""

    def __init__(
        self, vocab: Collection[str], unk_token: str = "[UNK]", max_input_chars_per_word: int = 200
    ):
        self.vocab = vocab
        self.unk_token = unk_token
        self.max_input_chars_per_word = max_input_chars_per_word

    def tokenize(self, text: str | bytes) -> list[str]:
        """Returns the pieces of all words; a word that the vocabulary cannot form is
        `unk_token`.
        """
        words = whitespace_tokenize(convert_to_unicode(text))
        return [piece for word in words for piece in self._pieces(word)]

    def _pieces(self, word):
        if len(word) > self.max_input_chars_per_word:
            return [self.unk_token]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                piece = prefix + word[start:end]
                if piece in self.vocab:
                    break
            else:
                return [self.unk_token]
            pieces.append(piece)
            start = end
        return pieces
