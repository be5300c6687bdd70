"""Text of a whole file -> token ids, as tokenization.py says, at about 200 MB/s.

One pass over the bytes in a kernel compiled by numba. What a character becomes is asked of
tokenization.py once for each character of the text; a chunk (characters between white space) with
one of the few that depend on their neighbours is given to tokenization.py as it is. So the result
is always what tokenization.py says.

All kernels stand in this file because numba's cache notices changes in a kernel's own file only.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import tokenization
from bert.common.kernels import at_every_offset, inlined_kernel, kernel

# What a character does. Everything else about it is in the tables. Those below MULTIBYTE end a
# word.
SPACE, LINE_END, ALONE, MULTIBYTE, WORD, DROPPED, CONTEXT = range(7)

_ASCII = bytes(range(128))
MAX_WORD_CHARS = 200  # a longer word is [UNK]
_WORD_BUFFER = 4 * (MAX_WORD_CHARS + 4)
_TRIE_ENTRY = np.dtype([("key", "u8"), ("child", "u4"), ("piece", "i4")])

# Words of up to 16 bytes, as two numbers, are remembered with up to 4 pieces, as one number, the
# first in its lowest bits.
_CACHE_BITS, _CACHED_BYTES, _CACHED_PIECES = 16, 16, 4
_CACHED_WORD = np.dtype([("low", "u8"), ("high", "u8"), ("pieces", "u8"), ("num_pieces", "u8")])

# Where the kernel stands, an int64 array: it stops at a chunk for tokenization.py and starts again
# behind it.
_POSITION, _NUM_TOKENS, _NUM_SENTENCES, _NUM_BREAKS, _SENTENCE_START, _IS_BLANK = range(6)


class Sentences(NamedTuple):
    """Tokens of a text.

    Sentence s is tokens[ends[s - 1] : ends[s]]; equal `documents` mean the same document.
    """

    tokens: np.ndarray  # uint16 [number of tokens]
    ends: np.ndarray  # int64 [S], where each sentence ends in `tokens`
    documents: np.ndarray  # int64 [S], how many lines that end a document came before
    num_breaks: int  # such lines in the whole text


class Corpus(NamedTuple):
    """Sentence s is tokens[sentence_starts[s] : sentence_starts[s + 1]], document d the sentences
    from document_starts[d].
    """

    tokens: np.ndarray  # uint16 [T]
    sentence_starts: np.ndarray  # int64 [S + 1]
    document_starts: np.ndarray  # int64 [D + 1]; no document is empty


def join(texts: Sequence[Sentences]) -> Corpus:
    """Returns the `Corpus` of a list of `Sentences`; the end of a text does not end a document."""
    ends, documents, num_tokens, num_breaks = [np.zeros(1, np.int64)], [], 0, 0
    for text in texts:
        ends.append(text.ends + num_tokens)
        documents.append(text.documents + num_breaks)
        num_tokens, num_breaks = num_tokens + len(text.tokens), num_breaks + text.num_breaks
    documents = np.concatenate(documents)
    is_first = np.concatenate([np.ones(min(1, len(documents)), np.bool_), np.diff(documents) > 0])
    tokens = texts[0].tokens if len(texts) == 1 else np.concatenate([text.tokens for text in texts])
    return Corpus(tokens, np.concatenate(ends), np.append(np.flatnonzero(is_first), len(documents)))


class TextTokenizer:
    """Tokenises texts like the `FullTokenizer` it is made of, whose vocabulary may have 65,536
    tokens at most.
    """

    def __init__(self, tokenizer: tokenization.FullTokenizer):
        self._tokenizer = tokenizer
        vocab, do_lower_case = tokenizer.vocab, tokenizer.basic_tokenizer.do_lower_case
        pieces = [token.encode() for token in vocab]
        ends = np.cumsum([len(piece) for piece in pieces])
        trie_bits = int(2 * ends[-1] + 16).bit_length()
        self._trie = np.zeros(1 << trie_bits, _TRIE_ENTRY)
        self._trie["piece"] = -1
        _build_trie(_as_array(b"".join(pieces)), ends, self._trie)
        self._continuation = _find_node(self._trie, _as_array(b"##"))
        self._unknown_id = np.uint16(vocab["[UNK]"])
        self._cached_words = np.zeros(1 << _CACHE_BITS, _CACHED_WORD)

        self._char_kinds = np.zeros(0x110000, np.uint8)
        self._char_is_space = np.zeros(0x110000, np.bool_)
        self._char_ids = np.zeros(0x110000, np.uint16)  # of those that stand alone
        # In self._texts, where what it becomes in a word stands in UTF-8.
        self._char_starts = np.zeros(0x110000, np.int32)
        self._char_lengths = np.zeros(0x110000, np.uint8)
        self._texts = bytearray()
        self._known = np.zeros(0x110000, np.bool_)
        self._do_lower_case = do_lower_case
        self._context_ids: dict[str, list[int]] = {}  # chunk -> token ids
        for code in _ASCII:
            self._learn(code)
        self._char_kinds[ord("\n")] = LINE_END
        if tokenizer.basic_tokenizer.preserved_tokens:
            self._char_kinds[ord("[")] = CONTEXT  # [unused7] may begin here
        self._byte_kinds = np.full(256, MULTIBYTE, np.uint8)
        self._byte_kinds[:128] = self._char_kinds[:128]
        # The kernel takes ASCII words by arithmetic: see _word_bytes.
        assert all((self._char_kinds[code] == WORD) == chr(code).isalnum() for code in range(128))

    def tokenize(self, text: bytes) -> Sentences:
        r"""Tokenises the lines of a text (valid UTF-8 bytes without \r); returns `Sentences`."""
        if not text.endswith(b"\n"):
            text += b"\n" if text else b""
        data = _as_array(text)
        self._learn_characters(text)
        # A token takes a byte of text at least, a sentence two. Pieces are stored _CACHED_PIECES at
        # a time.
        tokens = np.empty(len(text) + _CACHED_PIECES, np.uint16)
        ends, documents = (
            np.empty(len(text) // 2 + 1, np.int64),
            np.empty(len(text) // 2 + 1, np.int64),
        )
        progress = np.zeros(6, np.int64)
        progress[_IS_BLANK] = True
        texts, word = _as_array(bytes(self._texts)), np.zeros(_WORD_BUFFER, np.uint8)
        lower_case_bits = np.uint64(0x2020202020202020 if self._do_lower_case else 0)
        while not _tokenize(
            data, at_every_offset(data, np.uint64), lower_case_bits, self._byte_kinds,
            self._char_kinds, self._char_is_space, self._char_ids, self._char_starts,
            self._char_lengths, texts, self._trie, self._continuation, self._unknown_id,
            self._cached_words, word, at_every_offset(word, np.uint64), tokens,
            at_every_offset(tokens, np.uint64), ends, documents, progress,
        ):  # fmt: skip
            self._tokenize_chunk(text, tokens, progress)
        num_sentences = progress[_NUM_SENTENCES]
        return Sentences(
            tokens[: progress[_NUM_TOKENS]],
            ends[:num_sentences].copy(),
            documents[:num_sentences].copy(),
            int(progress[_NUM_BREAKS]),
        )

    def _tokenize_chunk(self, text, tokens, progress):
        """Gives the chunk at which the kernel stopped to tokenization.py."""
        start = progress[_POSITION]
        end = min(
            at for at in (text.find(b" ", start), text.find(b"\n", start), len(text)) if at >= 0
        )
        chunk = text[start:end]
        if chunk not in self._context_ids:
            self._context_ids[chunk] = self._tokenizer.convert_tokens_to_ids(
                self._tokenizer.tokenize(chunk)
            )
        ids = self._context_ids[chunk]
        first = progress[_NUM_TOKENS]
        tokens[first : first + len(ids)] = ids
        progress[_POSITION], progress[_NUM_TOKENS], progress[_IS_BLANK] = (
            end,
            first + len(ids),
            False,
        )

    def _learn_characters(self, text):
        """Fills the tables for the characters of a text (bytes) but those of ASCII."""
        others = text.translate(None, _ASCII).decode().encode("utf-32-le")
        occurs = np.zeros(0x110000, np.bool_)
        occurs[np.frombuffer(others, np.uint32)] = True
        for code in np.flatnonzero(occurs & ~self._known).tolist():
            self._learn(code)

    def _learn(self, code):
        """Fills the tables for one code point."""
        char = chr(code)
        kind, text = self._classify(char)
        self._known[code] = True
        self._char_kinds[code], self._char_is_space[code] = kind, char.isspace()
        encoded = text.encode() if kind == WORD else b""
        if kind == ALONE:
            self._char_ids[code] = self._tokenizer.vocab.get(text, self._unknown_id)
        self._char_starts[code], self._char_lengths[code] = len(self._texts), len(encoded)
        self._texts += encoded

    def _classify(self, char):
        """Returns (kind, what stands for the character in a word)."""
        char = tokenization.as_unicode_11(char)
        if char == "\ufffd" or tokenization._is_control(char):
            return DROPPED, ""
        if tokenization._is_whitespace(char) or char.isspace():
            return SPACE, ""
        text = char
        if self._do_lower_case:
            if char == "\u03a3":  # capital sigma: its small form depends on what follows
                return CONTEXT, ""
            decomposed = unicodedata.normalize("NFD", char.lower())
            # Marks are put in order across characters; as nonspacing ones are dropped, only others
            # can tell.
            if any(
                unicodedata.combining(part) and unicodedata.category(part) != "Mn"
                for part in decomposed
            ):
                return CONTEXT, ""
            text = tokenization.BasicTokenizer._strip_accents(decomposed)
        stands_alone = [
            tokenization._is_cjk_ideograph(char) or tokenization._is_punctuation(part)
            for part in text
        ]
        if not text:
            return DROPPED, ""
        if not any(stands_alone):
            return (CONTEXT if any(part.isspace() for part in text) else WORD), text
        return (ALONE if len(text) == 1 else CONTEXT), text


def _as_array(data):
    return np.frombuffer(data, np.uint8)


# --------------------------------------------------------------------------------------------------
# The vocabulary as a trie over bytes, in a hash table: (node, byte) -> (child, piece that ends here
# or -1). Node 0 is the root.


@inlined_kernel
def _slot(trie, node, byte):
    """Where the entry of (node, byte) is, or would be."""
    key = (np.uint64(node) << np.uint64(8) | np.uint64(byte)) + np.uint64(1)  # 0 marks a free slot
    mask = np.uint64(len(trie) - 1)
    slot = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20) & mask
    while trie[slot].key != key and trie[slot].key != 0:
        slot = (slot + np.uint64(1)) & mask
    return slot, key


@kernel
def _build_trie(pieces, ends, trie):
    num_nodes, start = 1, 0
    for piece in range(len(ends)):
        node = 0
        for at in range(start, ends[piece]):
            slot, key = _slot(trie, node, pieces[at])
            entry = trie[slot]
            if entry.key == 0:
                entry.key, entry.child = key, num_nodes
                num_nodes += 1
            node = np.int64(entry.child)
            if at == ends[piece] - 1:
                entry.piece = piece
        start = ends[piece]


@kernel
def _find_node(trie, text):
    """The node at which `text` ends, or -1."""
    node = 0
    for byte in text:
        slot, _ = _slot(trie, node, byte)
        if trie[slot].key == 0:
            return -1
        node = np.int64(trie[slot].child)
    return node


@kernel
def _wordpiece(word, size, trie, continuation, unknown_id, tokens, num_tokens):
    """Greedy longest match from the left; returns the new number of tokens."""
    first, start, one, node = num_tokens, np.uint64(0), np.uint64(1), 0
    while start < size:
        piece, piece_end, at = -1, start, start
        while at < size and node >= 0:
            slot, _ = _slot(trie, node, word[at])
            if trie[slot].key == 0:
                break
            at += one
            node = np.int64(trie[slot].child)
            if trie[slot].piece >= 0:
                piece, piece_end = trie[slot].piece, at
        if piece < 0:
            tokens[first] = unknown_id
            return first + one
        tokens[num_tokens] = piece
        num_tokens += one
        start, node = piece_end, continuation
    return num_tokens


@inlined_kernel
def _word_bytes(eight):
    """Returns 0xff for every letter or digit of ASCII at the beginning of eight bytes, 0 for all
    behind.
    """
    low_bits = eight & np.uint64(0x7F7F7F7F7F7F7F7F)
    lower = low_bits | np.uint64(0x2020202020202020)
    # A sum reaches 0x80 in each byte that is at least "a", beyond "z", at least "0", beyond "9".
    letter = (lower + np.uint64(0x1F1F1F1F1F1F1F1F)) & ~(lower + np.uint64(0x0505050505050505))
    digit = (low_bits + np.uint64(0x5050505050505050)) & ~(low_bits + np.uint64(0x4646464646464646))
    others = ~((letter | digit) & ~eight) & np.uint64(0x8080808080808080)
    first_other = others & (np.uint64(0) - others)
    return (first_other >> np.uint64(7)) - np.uint64(1)


@inlined_kernel
def _count_bytes(mask):
    """How many bytes of a mask of 0x00 and 0xff are 0xff."""
    return (mask & np.uint64(0x0101010101010101)) * np.uint64(0x0101010101010101) >> np.uint64(56)


@inlined_kernel
def _first_bytes(size):
    """0xff for the first `size` bytes of eight, 0 to 8."""
    return ~np.uint64(0) >> (np.uint64(64) - np.uint64(8) * size) if size else np.uint64(0)


@inlined_kernel
def _cache_slot(low, high):
    mixed = (low ^ high * np.uint64(0xFF51AFD7ED558CCD)) * np.uint64(0x9E3779B97F4A7C15)
    return mixed >> np.uint64(64 - _CACHE_BITS)


@kernel
def _append_word(
    word,
    word_eights,
    size,
    num_chars,
    trie,
    continuation,
    unknown_id,
    cached_words,
    tokens,
    tokens_in_fours,
    num_tokens,
):
    """Appends the pieces of a word and remembers them; returns the new number of tokens."""
    if num_chars > MAX_WORD_CHARS:
        tokens[num_tokens] = unknown_id
        return num_tokens + np.uint64(1)
    end = _wordpiece(word, size, trie, continuation, unknown_id, tokens, num_tokens)
    if size <= _CACHED_BYTES and end - num_tokens <= _CACHED_PIECES:
        eight = np.uint64(8)
        low, high = (
            word_eights[0] & _first_bytes(min(size, eight)),
            word_eights[8] & _first_bytes(max(size, eight) - eight),
        )
        cached = cached_words[_cache_slot(low, high)]
        cached.low, cached.high = low, high
        cached.pieces, cached.num_pieces = tokens_in_fours[num_tokens], end - num_tokens
    return end


# --------------------------------------------------------------------------------------------------
# The text


@inlined_kernel
def _decode(data, at):
    """Returns (code point, bytes) of the character at `at` in valid UTF-8, of two bytes or more."""
    lead = np.uint32(data[at])
    second = np.uint32(data[at + 1]) & np.uint32(0x3F)
    if lead < 0xE0:
        return (lead & np.uint32(0x1F)) << np.uint32(6) | second, 2
    third = np.uint32(data[at + 2]) & np.uint32(0x3F)
    if lead < 0xF0:
        return (lead & np.uint32(0xF)) << np.uint32(12) | second << np.uint32(6) | third, 3
    fourth = np.uint32(data[at + 3]) & np.uint32(0x3F)
    return (lead & np.uint32(0x7)) << np.uint32(18) | second << np.uint32(12) | third << np.uint32(
        6
    ) | fourth, 4


@kernel
def _tokenize(
    data, eights, lower_case_bits, byte_kinds, char_kinds, char_is_space, char_ids, char_starts,
    char_lengths, texts, trie, continuation, unknown_id, cached_words, word, word_eights, tokens,
    tokens_in_fours, ends, documents, progress,
):  # fmt: skip
    """Tokenises from progress[_POSITION] on, to the end (returns True) or to a chunk for
    tokenization.py (False).

    `data` ends with a line end, or is empty.
    """
    at, num_tokens, num_sentences = (
        np.uint64(progress[_POSITION]),
        np.uint64(progress[_NUM_TOKENS]),
        progress[_NUM_SENTENCES],
    )
    num_breaks, sentence_start, is_blank = (
        progress[_NUM_BREAKS],
        np.uint64(progress[_SENTENCE_START]),
        progress[_IS_BLANK] != 0,
    )
    zero, one, eight, end_of_text = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(len(data))
    chunk_start, tokens_at_chunk = at, num_tokens
    size, num_chars = zero, zero  # of the word so far
    while at < end_of_text:
        if size == zero and at + eight + eight < end_of_text:
            # Nearly all words: up to 16 letters and digits of ASCII, met before, then white space
            # or punctuation.
            mask = _word_bytes(eights[at])
            low, high, num_bytes = (
                eights[at] & mask | lower_case_bits & mask,
                zero,
                _count_bytes(mask),
            )
            if num_bytes == eight:
                mask = _word_bytes(eights[at + eight])
                high = eights[at + eight] & mask | lower_case_bits & mask
                num_bytes += _count_bytes(mask)
            if num_bytes > zero and byte_kinds[data[at + num_bytes]] < MULTIBYTE:
                cached = cached_words[_cache_slot(low, high)]
                if cached.low == low and cached.high == high:
                    tokens_in_fours[num_tokens] = cached.pieces
                    num_tokens += cached.num_pieces
                    at += num_bytes
                    is_blank = False
        code, code_size = np.uint32(data[at]), 1
        kind = byte_kinds[code]
        if kind == MULTIBYTE:
            code, code_size = _decode(data, at)
            kind = char_kinds[code]
        if kind == WORD:
            start = np.uint64(char_starts[code])
            for k in range(start, start + np.uint64(char_lengths[code])):
                if num_chars <= MAX_WORD_CHARS:
                    word[size] = texts[k]
                    size += one
                    num_chars += np.uint64(texts[k] & 0xC0 != 0x80)  # not a continuation byte
        elif kind == DROPPED:
            is_blank = is_blank and char_is_space[code]
        elif kind == CONTEXT:  # the chunk is left to tokenization.py, from its beginning
            at, num_tokens = chunk_start, tokens_at_chunk
            break
        else:
            if size > zero:
                num_tokens = _append_word(
                    word, word_eights, size, num_chars, trie, continuation, unknown_id,
                    cached_words, tokens, tokens_in_fours, num_tokens
                )  # fmt: skip
                size, num_chars, is_blank = zero, zero, False
            if kind == ALONE:
                tokens[num_tokens] = char_ids[code]
                num_tokens += one
                is_blank = False
            else:
                if kind == LINE_END:
                    if is_blank:
                        num_breaks += 1
                    elif num_tokens > sentence_start:
                        ends[num_sentences], documents[num_sentences] = num_tokens, num_breaks
                        num_sentences += 1
                    sentence_start, is_blank = num_tokens, True
                chunk_start, tokens_at_chunk = at + np.uint64(code_size), num_tokens
        at += np.uint64(code_size)
    progress[_POSITION], progress[_NUM_TOKENS], progress[_NUM_SENTENCES] = (
        at,
        num_tokens,
        num_sentences,
    )
    progress[_NUM_BREAKS], progress[_SENTENCE_START], progress[_IS_BLANK] = (
        num_breaks,
        sentence_start,
        is_blank,
    )
    return at == end_of_text
