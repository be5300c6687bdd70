"""Text of a whole file -> token ids, as tokenization.py says, at about 80 MB/s.

One pass over the bytes in a kernel compiled by numba. What a character becomes is asked of tokenization.py and of the running
interpreter once for each character of the text; a chunk (characters between white space) with one of the few that depend on
their neighbours is given to tokenization.py as it is. So the result is always what tokenization.py says.

All kernels stand in this file because numba's cache notices changes in a kernel's own file only.
"""

import codecs
import unicodedata
from typing import NamedTuple

import numpy as np

import tokenization
from bert.kernels import inlined_kernel, kernel

# What a character does. Everything else about it is in the tables.
WORD, SPACE, LINE_END, ALONE, DROPPED, MULTIBYTE, CONTEXT = range(7)

MAX_WORD_CHARS = 200  # a longer word is [UNK]
_WORD_BUFFER = 4 * (MAX_WORD_CHARS + 4)
_CACHE_BITS, _CACHED_PIECES = 15, 7
_TRIE_ENTRY = np.dtype([("key", "u8"), ("child", "u4"), ("piece", "i4")])

# Where the kernel stands, an int64 array: it stops at a chunk for tokenization.py and goes on behind it.
_POSITION, _NUM_TOKENS, _NUM_SENTENCES, _NUM_BREAKS, _SENTENCE_START, _IS_BLANK = range(6)


class Sentences(NamedTuple):
    """Tokens of a text. Sentence s is tokens[ends[s - 1] : ends[s]]; equal `documents` mean the same document."""

    tokens: np.ndarray  # uint16 [number of tokens]
    ends: np.ndarray  # int64 [S], where each sentence ends in `tokens`
    documents: np.ndarray  # int64 [S], how many lines that end a document came before
    num_breaks: int  # such lines in the whole text


class Corpus(NamedTuple):
    """Sentence s is tokens[sentence_starts[s] : sentence_starts[s + 1]], document d the sentences from document_starts[d]."""

    tokens: np.ndarray  # uint16 [T]
    sentence_starts: np.ndarray  # int64 [S + 1]
    document_starts: np.ndarray  # int64 [D + 1]; no document is empty


def join(texts):
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
    """Tokenises texts like the `FullTokenizer` it is made of, whose vocabulary may have 65,536 tokens at most."""

    def __init__(self, tokenizer):
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
        # Words of up to 16 bytes (as two numbers), and their pieces: how many, then their ids.
        self._cached_words = np.zeros((1 << _CACHE_BITS, 2), np.uint64)
        self._cached_pieces = np.zeros((1 << _CACHE_BITS, 1 + _CACHED_PIECES), np.uint16)

        self._char_kinds = np.zeros(0x110000, np.uint8)
        self._char_is_space = np.zeros(0x110000, np.bool_)
        self._char_starts = np.zeros(0x110000, np.int32)  # in self._texts, where what it becomes stands in UTF-8
        self._char_lengths = np.zeros(0x110000, np.uint8)
        self._texts = bytearray()
        self._known = np.zeros(0x110000, np.bool_)
        self._do_lower_case = do_lower_case
        self._context_ids = {}  # chunk -> token ids
        for code in range(128):
            self._learn(code)
        self._char_kinds[ord("\n")] = LINE_END
        if tokenizer.basic_tokenizer.preserved_tokens:
            self._char_kinds[ord("[")] = CONTEXT  # [unused7] may begin here
        self._byte_kinds = np.full(256, MULTIBYTE, np.uint8)
        self._byte_kinds[:128] = self._char_kinds[:128]
        self._byte_texts = np.array([ord(chr(code).lower() if do_lower_case else chr(code)) for code in range(128)], np.uint8)

    def tokenize(self, text):
        r"""Tokenises the lines of a text (valid UTF-8 bytes without \r); returns `Sentences`."""
        if not text.endswith(b"\n"):
            text += b"\n" if text else b""
        data = _as_array(text)
        self._learn_characters(data)
        # A token takes a byte of text at least, a sentence two.
        tokens = np.empty(len(data) + 1, np.uint16)
        ends, documents = np.empty(len(data) // 2 + 1, np.int64), np.empty(len(data) // 2 + 1, np.int64)
        progress = np.zeros(6, np.int64)
        progress[_IS_BLANK] = True
        texts = _as_array(bytes(self._texts))
        while not _tokenize(
            data, self._byte_kinds, self._byte_texts, self._char_kinds, self._char_is_space, self._char_starts, self._char_lengths, texts,
            self._trie, self._continuation, self._unknown_id, self._cached_words, self._cached_pieces, np.empty(_WORD_BUFFER, np.uint8),
            tokens, ends, documents, progress,
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
        end = min(at for at in (text.find(b" ", start), text.find(b"\n", start), len(text)) if at >= 0)
        chunk = text[start:end]
        if chunk not in self._context_ids:
            self._context_ids[chunk] = self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(chunk))
        ids = self._context_ids[chunk]
        first = progress[_NUM_TOKENS]
        tokens[first : first + len(ids)] = ids
        progress[_POSITION], progress[_NUM_TOKENS], progress[_IS_BLANK] = end, first + len(ids), False

    def _learn_characters(self, data):
        occurs = np.zeros(0x110000, np.bool_)
        _mark_characters(data, occurs)
        for code in np.flatnonzero(occurs & ~self._known).tolist():
            self._learn(code)

    def _learn(self, code):
        """Fills the tables for one code point."""
        char = chr(code)
        kind, text = self._classify(char)
        self._known[code] = True
        self._char_kinds[code], self._char_is_space[code] = kind, char.isspace()
        encoded = text.encode() if kind in (WORD, ALONE) else b""
        self._char_starts[code], self._char_lengths[code] = len(self._texts), len(encoded)
        self._texts += encoded

    def _classify(self, char):
        """Returns (kind, what stands for the character in a word)."""
        if char == "\ufffd" or tokenization._is_control(char):
            return DROPPED, ""
        if tokenization._is_whitespace(char) or char.isspace():
            return SPACE, ""
        text = char
        if self._do_lower_case:
            if char == "\u03a3":  # capital sigma: its small form depends on what follows
                return CONTEXT, ""
            decomposed = unicodedata.normalize("NFD", char.lower())
            # Marks are put in order across characters; as nonspacing ones are dropped, only others can tell.
            if any(unicodedata.combining(part) and unicodedata.category(part) != "Mn" for part in decomposed):
                return CONTEXT, ""
            text = tokenization.BasicTokenizer._strip_accents(decomposed)
        stands_alone = [tokenization._is_cjk_ideograph(char) or tokenization._is_punctuation(part) for part in text]
        if not text:
            return DROPPED, ""
        if not any(stands_alone):
            return (CONTEXT if any(part.isspace() for part in text) else WORD), text
        return (ALONE if len(text) == 1 else CONTEXT), text


def is_utf8(data):
    """Whether bytes are valid UTF-8; decodes 1 MB at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    step = 1 << 20
    try:
        for start in range(0, len(data), step):
            decoder.decode(data[start : start + step], final=start + step >= len(data))
    except UnicodeDecodeError:
        return False
    return True


def _as_array(data):
    return np.frombuffer(data, np.uint8)


# ---------------------------------------------------------------------------------------------------------------
# The vocabulary as a trie over bytes, in a hash table: (node, byte) -> (child, piece that ends here or -1). Node 0 is the root.


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
    first, start, node = num_tokens, 0, 0
    while start < size:
        piece, piece_end, at = -1, start, start
        while at < size and node >= 0:
            slot, _ = _slot(trie, node, word[at])
            if trie[slot].key == 0:
                break
            at += 1
            node = np.int64(trie[slot].child)
            if trie[slot].piece >= 0:
                piece, piece_end = trie[slot].piece, at
        if piece < 0:
            tokens[first] = unknown_id
            return first + 1
        tokens[num_tokens] = piece
        num_tokens += 1
        start, node = piece_end, continuation
    return num_tokens


@kernel
def _append_word(
    word, size, num_chars, high, low, trie, continuation, unknown_id, cached_words, cached_pieces, tokens, num_tokens
):
    """Appends the pieces of a word; words of up to 16 bytes, whose bytes are `high` and `low`, are remembered.

    Returns the new number of tokens.
    """
    mixed = (low ^ high * np.uint64(0xFF51AFD7ED558CCD)) * np.uint64(0x9E3779B97F4A7C15)
    slot = mixed >> np.uint64(64 - _CACHE_BITS)
    if size <= 16 and cached_words[slot, 0] == low and cached_words[slot, 1] == high:
        num_pieces = np.int64(cached_pieces[slot, 0])
        for k in range(num_pieces):
            tokens[num_tokens + k] = cached_pieces[slot, k + 1]
        end = num_tokens + num_pieces
    elif num_chars > MAX_WORD_CHARS:
        tokens[num_tokens] = unknown_id
        end = num_tokens + 1
    else:
        end = _wordpiece(word, size, trie, continuation, unknown_id, tokens, num_tokens)
        if size <= 16 and end - num_tokens <= _CACHED_PIECES:
            cached_words[slot, 0], cached_words[slot, 1], cached_pieces[slot, 0] = low, high, end - num_tokens
            for k in range(end - num_tokens):
                cached_pieces[slot, k + 1] = tokens[num_tokens + k]
    return end


# ---------------------------------------------------------------------------------------------------------------
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
    return (lead & np.uint32(0x7)) << np.uint32(18) | second << np.uint32(12) | third << np.uint32(6) | fourth, 4


@kernel
def _ascii_run(data, at, byte_kinds, byte_texts, word, size, num_chars, high, low):
    """Takes the ASCII word characters from data[at] on into the word."""
    while byte_kinds[data[at]] == WORD:
        byte = byte_texts[data[at]]
        if num_chars <= MAX_WORD_CHARS:
            word[size] = byte
            size += 1
            num_chars += 1
        high = high << np.uint64(8) | low >> np.uint64(56)
        low = low << np.uint64(8) | np.uint64(byte)
        at += 1
    return at, size, num_chars, high, low


@kernel
def _mark_characters(data, occurs):
    at = 0
    while at < len(data):
        if data[at] < 0x80:
            at += 1
        else:
            code, size = _decode(data, at)
            occurs[code] = True
            at += size


@kernel
def _tokenize(
    data, byte_kinds, byte_texts, char_kinds, char_is_space, char_starts, char_lengths, texts,
    trie, continuation, unknown_id, cached_words, cached_pieces, word, tokens, ends, documents, progress,
):  # fmt: skip
    """Tokenises from progress[_POSITION] on, to the end (returns True) or to a chunk for tokenization.py (False).

    `data` ends with a line end, or is empty.
    """
    at, num_tokens, num_sentences = progress[_POSITION], progress[_NUM_TOKENS], progress[_NUM_SENTENCES]
    num_breaks, sentence_start, is_blank = progress[_NUM_BREAKS], progress[_SENTENCE_START], progress[_IS_BLANK] != 0
    chunk_start, tokens_at_chunk = at, num_tokens
    # The word so far; it is complete after a character that stands alone, whatever comes next.
    size, num_chars, high, low, is_complete = 0, 0, np.uint64(0), np.uint64(0), False
    while at < len(data):
        code, code_size = np.uint32(data[at]), 1
        kind = byte_kinds[code]
        if kind == WORD and not is_complete:  # of ASCII: nearly all text comes here
            at, size, num_chars, high, low = _ascii_run(data, at, byte_kinds, byte_texts, word, size, num_chars, high, low)
            continue
        if kind == MULTIBYTE:
            code, code_size = _decode(data, at)
            kind = char_kinds[code]
        if size > 0:
            is_blank = False
            if is_complete or (kind != WORD and kind != DROPPED):
                num_tokens = _append_word(
                    word, size, num_chars, high, low, trie, continuation, unknown_id, cached_words, cached_pieces, tokens, num_tokens
                )  # fmt: skip
                size, num_chars, high, low, is_complete = 0, 0, np.uint64(0), np.uint64(0), False
        if kind == SPACE:
            chunk_start, tokens_at_chunk = at + code_size, num_tokens
        elif kind == WORD or kind == ALONE:
            is_blank = False
            start = char_starts[code]
            for k in range(start, start + char_lengths[code]):
                byte = texts[k]
                if num_chars <= MAX_WORD_CHARS:
                    word[size] = byte
                    size += 1
                    num_chars += byte & 0xC0 != 0x80  # not a continuation byte
                high = high << np.uint64(8) | low >> np.uint64(56)
                low = low << np.uint64(8) | np.uint64(byte)
            is_complete = kind == ALONE
        elif kind == LINE_END:
            if is_blank:
                num_breaks += 1
            elif num_tokens > sentence_start:
                ends[num_sentences], documents[num_sentences] = num_tokens, num_breaks
                num_sentences += 1
            sentence_start, is_blank = num_tokens, True
            chunk_start, tokens_at_chunk = at + 1, num_tokens
        elif kind == DROPPED:
            is_blank = is_blank and char_is_space[code]
        else:  # CONTEXT: the chunk is left to tokenization.py, from its beginning
            at, num_tokens = chunk_start, tokens_at_chunk
            break
        at += code_size
    progress[_POSITION], progress[_NUM_TOKENS], progress[_NUM_SENTENCES] = at, num_tokens, num_sentences
    progress[_NUM_BREAKS], progress[_SENTENCE_START], progress[_IS_BLANK] = num_breaks, sentence_start, is_blank
    return at == len(data)
