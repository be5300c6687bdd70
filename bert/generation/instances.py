"""Sentences of token ids -> training instances: exact Mersenne Twister, pairing, truncation,
masking.

Kernels compiled by numba: arrays in, arrays out. They draw the same random numbers in the same
order as the readable definition, tests/reference/create_pretraining_data.py, does with
`random.Random`. All of them stand in this file because numba's cache notices changes in a kernel's
own file only.

The arrays `tokens`, `sentence_starts` and `document_starts` are those of
bert/generation/wordpiece.py's `Corpus`.
"""

import random
from collections.abc import Mapping

import numpy as np
from numba.cpython.unsafe.numbers import leading_zeros, trailing_zeros

from bert.common.kernels import inlined_kernel, kernel
from bert.examples.instances import CHANGE, INSTANCE, Instances
from bert.generation.wordpiece import Corpus

WORDS = 624  # of the generator's state, and of a block of its output
_HALF = np.uint32(1 << 31)  # random() < 0.5 looks at the top bit of the first of its two words
# random() is k / 2**53, and 0.8 is a whole multiple of that.
_EIGHT_TENTHS = np.uint64(0.8 * (1 << 53))


# --------------------------------------------------------------------------------------------------
# MT19937, as CPython's `random` runs it. A generator is (state, words, cursor): uint32 [624],
# uint32 [624] of output, int64 [1], the next word to hand out.

Generator = tuple[np.ndarray, np.ndarray, np.ndarray]


def new_generator(seed: int) -> Generator:
    """Returns the generator of `random.Random(seed)` in its first state."""
    _, (*state, position), _ = random.Random(seed).getstate()
    assert position == WORDS
    return np.array(state, np.uint32), np.empty(WORDS, np.uint32), np.array([WORDS])


@inlined_kernel
def _twist(word, following):
    mixed = (word & np.uint32(0x80000000)) | (following & np.uint32(0x7FFFFFFF))
    return (mixed >> np.uint32(1)) ^ (
        (np.uint32(0) - (mixed & np.uint32(1))) & np.uint32(0x9908B0DF)
    )


@kernel
def _refill(state, words):
    """The next 624 words: the state's recurrence, then tempering.

    Source: Matsumoto and Nishimura 1998.
    """
    # Three loops of plain index arithmetic, which the compiler turns into vector instructions.
    for k in range(WORDS - 397):
        state[k] = state[k + 397] ^ _twist(state[k], state[k + 1])
    for k in range(WORDS - 397, WORDS - 1):
        state[k] = state[k + 397 - WORDS] ^ _twist(state[k], state[k + 1])
    state[WORDS - 1] = state[396] ^ _twist(state[WORDS - 1], state[0])
    for k in range(WORDS):
        y = state[k]
        y ^= y >> np.uint32(11)
        y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
        y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
        words[k] = y ^ (y >> np.uint32(18))


@inlined_kernel
def _word(generator):
    state, words, cursor = generator
    if cursor[0] == WORDS:
        _refill(state, words)
        cursor[0] = 0
    word = words[cursor[0]]
    cursor[0] += 1
    return word


@inlined_kernel
def _random_53_bits(generator):
    """random() * 2**53, a uint64."""
    high = np.uint64(_word(generator) >> np.uint32(5))
    return high << np.uint64(26) | np.uint64(_word(generator) >> np.uint32(6))


@kernel
def random_double(generator: Generator) -> float:
    """random()"""
    return _random_53_bits(generator) * (1.0 / (1 << 53))


@inlined_kernel
def _bit_length(n):
    return 64 - np.int64(leading_zeros(np.uint64(n)))


@kernel
def below(n: int, generator: Generator) -> int:
    """A number from 0 to n - 1; randint(a, b) is a + below(b - a + 1)."""
    shift = np.uint32(32 - _bit_length(n))
    number = np.int64(_word(generator) >> shift)
    while number >= n:
        number = np.int64(_word(generator) >> shift)
    return number  # type: ignore[return-value]  # of numba: no Python int


@kernel
def shuffle(values: np.ndarray, generator: Generator) -> None:
    """random.shuffle, in place."""
    for i in range(len(values) - 1, 0, -1):
        j = below(i + 1, generator)
        values[i], values[j] = values[j], values[i]


@kernel
def shuffle_head(values: np.ndarray, length: int, head: int, generator: Generator) -> None:
    """Like random.shuffle(values[:length]), but only values[:head] are right afterwards.

    Half of the time of data generation went here. Two things make it fast: what moves behind `head`
    is never looked at, so that half of a swap does; and a rejected draw is an exchange with itself
    instead of a branch that is guessed wrong.
    """
    state, words, cursor = generator
    at, one = np.uint64(cursor[0]), np.uint64(1)
    i = max(np.uint64(length), one) - one
    while i > 0:
        bits = _bit_length(np.int64(i) + 1)
        shift = np.uint32(32 - bits)
        # Down to this i, as many bits are drawn.
        smallest = np.uint64(max((1 << (bits - 1)) - 1, 1))
        while i >= smallest:
            if at == WORDS:
                _refill(state, words)
                at = np.uint64(0)
            drawn = np.uint64(words[at] >> shift)
            at += one
            is_accepted = drawn <= i
            j = min(drawn, i)
            moved = values[j]
            values[j] = values[i]
            if i < head:
                values[i] = moved
            i -= np.uint64(is_accepted)
    cursor[0] = at


# --------------------------------------------------------------------------------------------------
# Instances


def make_instances(
    corpus: Corpus,
    vocab: Mapping[str, int],
    generator: Generator,
    *,
    max_seq_length: int,
    max_predictions_per_seq: int,
    masked_lm_prob: float,
    short_seq_prob: float,
    dupe_factor: int,
) -> Instances:
    """Makes the instances of `dupe_factor` passes over a `Corpus`, its documents shuffled.

    vocab: {token: id}. Returns them in the order in which they are made.
    """
    order = np.arange(len(corpus.document_starts) - 1)
    shuffle(order, generator)
    # Python's round, half to even, of the product in double precision.
    num_predictions = np.array(
        [
            min(max_predictions_per_seq, max(1, round(length * masked_lm_prob)))
            for length in range(max_seq_length + 1)
        ]
    )
    candidates, replacement = np.empty((2, max_seq_length), np.uint16)
    scratch = (candidates, replacement, np.zeros(max_seq_length // 64 + 1, np.uint64))
    # Room for four times what full sequences need; memory that is never written to costs nothing.
    most = dupe_factor * (4 * len(corpus.tokens) // max_seq_length + len(order) + 1)
    instances, changes = np.empty(most, INSTANCE), np.empty(most * int(num_predictions[-1]), CHANGE)
    counts = np.zeros(2, np.int64)
    for _ in range(dupe_factor):
        place = 0
        while True:
            place = instances_of_documents(
                *corpus, order, place, max_seq_length, short_seq_prob, num_predictions, len(vocab),
                np.uint16(vocab["[MASK]"]), generator, scratch, instances, changes, counts,
            )  # fmt: skip
            if place == len(order):
                break
            sentences = (
                corpus.document_starts[order[place] + 1] - corpus.document_starts[order[place]]
            )
            instances = _with_room(instances, counts[0], sentences)
            changes = _with_room(changes, counts[1], sentences * num_predictions[-1])
    return Instances(instances[: counts[0]], corpus.tokens, changes[: counts[1]])


def _with_room(array, used, needed):
    """Returns `array` with room for `needed` rows more than the `used` ones, and half as much again
    as it has.
    """
    larger = np.empty(max(used + needed, len(array) * 3 // 2), array.dtype)
    larger[:used] = array[:used]
    return larger


@kernel
def instances_of_documents(
    tokens: np.ndarray, sentence_starts: np.ndarray, document_starts: np.ndarray,
    order: np.ndarray, first: int, max_seq_length: int, short_seq_prob: float,
    num_predictions: np.ndarray, vocab_size: int, mask_id: np.uint16, generator: Generator,
    scratch: tuple[np.ndarray, np.ndarray, np.ndarray], instances: np.ndarray, changes: np.ndarray,
    counts: np.ndarray,
) -> int:  # fmt: skip
    """Makes the instances of one pass over the documents, in `order` (int64 [D]) from order[first]
    on.

    num_predictions: int64 [max_seq_length + 1], predictions wanted of a sequence of that length.
    instances: INSTANCE [N];
    changes: CHANGE [M]. counts: int64 [2], the used rows of both. scratch: two uint16 arrays
    [max_seq_length] and as many bits, all 0, as uint64. Stops in front of a document for which
    there may be too few rows; returns its place in `order`, or D.
    """
    num_documents = len(order)
    max_num_tokens = max_seq_length - 3
    max_predictions = num_predictions[max_seq_length]  # the longest sequence has the most
    for place in range(first, num_documents):
        begin, end = document_starts[order[place]], document_starts[order[place] + 1]
        most = end - begin  # instances: each takes one sentence at least
        if counts[0] + most > len(instances) or counts[1] + most * max_predictions > len(changes):
            return place
        target = max_num_tokens
        if random_double(generator) < short_seq_prob:
            target = 2 + below(max_num_tokens - 1, generator)
        chunk = i = begin  # the chunk is the sentences chunk to i
        while i < end:
            if i == end - 1 or sentence_starts[i + 1] - sentence_starts[chunk] >= target:
                sentences = i + 1 - chunk
                a_end = 1 + (below(sentences - 1, generator) if sentences >= 2 else 0)
                a_start, a_stop = sentence_starts[chunk], sentence_starts[chunk + a_end]
                is_random_next = sentences == 1 or _random_53_bits(generator) < np.uint64(1 << 52)
                if is_random_next:
                    b_start, b_stop = _random_next(
                        place,
                        target - (a_stop - a_start),
                        sentence_starts,
                        document_starts,
                        order,
                        generator,
                    )
                    i -= sentences - a_end
                else:
                    b_start, b_stop = a_stop, sentence_starts[i + 1]
                a_start, a_length, b_start, b_length = _truncate(
                    a_start, a_stop - a_start, b_start, b_stop - b_start, max_num_tokens, generator
                )
                row = instances[counts[0]]
                row.a_start, row.a_length, row.b_start, row.b_length = (
                    a_start,
                    a_length,
                    b_start,
                    b_length,
                )
                row.is_random_next, row.first_change = is_random_next, counts[1]
                row.num_changes = _mask(
                    tokens, row, num_predictions[a_length + b_length + 3], vocab_size, mask_id,
                    generator, scratch, changes, counts,
                )  # fmt: skip
                counts[0] += 1
                chunk = i + 1
            i += 1
    return num_documents


@kernel
def _random_next(place, target_length, sentence_starts, document_starts, order, generator):
    """Returns the range of tokens of consecutive sentences of another document, until they reach
    `target_length`.
    """
    other = place
    for _ in range(10):
        other = below(len(order), generator)
        if other != place:
            break
    begin, end = document_starts[order[other]], document_starts[order[other] + 1]
    sentence = begin + below(end - begin, generator)
    start = sentence_starts[sentence]
    sentence += 1
    while sentence < end and sentence_starts[sentence] - start < target_length:
        sentence += 1
    return start, sentence_starts[sentence]


@kernel
def _truncate(a_start, a_length, b_start, b_length, max_num_tokens, generator):
    """Takes tokens off the longer range (B when equal), at its front or end, until both fit."""
    while a_length + b_length > max_num_tokens:
        is_front = np.int64(_word(generator) < _HALF)
        _word(generator)
        is_a = np.int64(a_length > b_length)
        a_start += is_a & is_front
        b_start += (1 - is_a) & is_front
        a_length -= is_a
        b_length -= 1 - is_a
    return a_start, a_length, b_start, b_length


@kernel
def _mask(tokens, row, wanted, vocab_size, mask_id, generator, scratch, changes, counts):
    """Chooses the tokens to be predicted and what stands in their place; appends them to `changes`,
    returns how many.

    Positions count from [CLS] = 0: A begins at 1, [SEP] follows, then B.
    """
    candidates, replacement, changed_bits = scratch
    # Unsigned numbers throughout: an index that cannot be negative is not checked for it.
    one, two, six, a_length = np.uint64(1), np.uint64(2), np.uint64(6), np.uint64(row.a_length)
    num_candidates = a_length + np.uint64(row.b_length)
    for k in range(a_length):
        candidates[k] = k + one
    for k in range(a_length, num_candidates):
        candidates[k] = k + two
    wanted = min(np.uint64(wanted), num_candidates)
    shuffle_head(candidates, num_candidates, wanted, generator)
    for k in range(wanted):
        position = np.uint64(candidates[k])
        new_id = mask_id
        if _random_53_bits(generator) >= _EIGHT_TENTHS:
            if _random_53_bits(generator) < np.uint64(1 << 52):
                in_a, in_b = (
                    np.uint64(row.a_start) + position - one,
                    np.uint64(row.b_start) + position - a_length - two,
                )
                new_id = tokens[in_a if position <= a_length else in_b]
            else:
                new_id = np.uint16(below(vocab_size, generator))
        replacement[position] = new_id
        changed_bits[position >> six] |= one << (position & np.uint64(63))
    at = np.uint64(counts[1])
    # Positions in ascending order: the lowest bit, again and again.
    for k in range(np.uint64(len(changed_bits))):
        bits = changed_bits[k]
        changed_bits[k] = 0
        while bits != 0:
            position = k << six | np.uint64(trailing_zeros(bits))
            changes[at].position, changes[at].new_id = position, replacement[position]
            at += one
            bits &= bits - one
    counts[1] = at
    return wanted
