"""Is a serialized example one that the generator can have made? If not, says why.

The decoder of the loader makes arrays of the examples, and a kernel judges these. What is wrong is
put in words from the readable decoder's values, which are exact.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bert.common.files import DataError
from bert.common.kernels import kernel
from bert.examples.decoding import Decoder
from bert.examples.example import FEATURES, check_lengths, decode_example, feature_lengths

_ROWS = 64  # examples decoded at once: their arrays (7 KB each) stay in the cache until judged
_MISFIT = 2**31 - 1  # for a value that its column cannot hold; no rule allows it


class Totals(NamedTuple):
    """What a block's examples add up to."""

    tokens: int
    unknown: int
    masked: int
    shown_as_mask: int
    random_next: int
    largest_id: int


class Rules(NamedTuple):
    """What an example must hold, by the flags that it was made with."""

    max_seq_length: int
    max_predictions_per_seq: int
    vocab_size: int
    special_ids: np.ndarray  # int64 [4]: [CLS], [SEP], [UNK], [MASK]
    # int64 [max_seq_length + 1]: predictions of an example of so many tokens; -1: not checked.
    num_masked: np.ndarray
    multipliers: np.ndarray  # uint64 [7, longest feature + 1], odd: of the hash


def make_rules(
    max_seq_length: int, max_predictions_per_seq: int, masked_lm_prob: float, vocab: dict[str, int]
) -> Rules:
    """masked_lm_prob: 0 if the number of predictions is not to be checked. vocab: {token: id}."""
    num_masked = np.full(max_seq_length + 1, -1)
    if masked_lm_prob:
        for length in range(3, max_seq_length + 1):
            wanted = min(max_predictions_per_seq, max(1, round(length * masked_lm_prob)))
            num_masked[length] = min(wanted, length - 3)  # [CLS] and the two [SEP] are never masked
    special_ids = np.array([vocab[token] for token in ("[CLS]", "[SEP]", "[UNK]", "[MASK]")])
    shape = (7, max(max_seq_length, max_predictions_per_seq) + 1)
    generator = np.random.Generator(np.random.PCG64(0))
    multipliers = generator.integers(0, 1 << 64, shape, np.uint64) | np.uint64(1)
    return Rules(
        max_seq_length, max_predictions_per_seq, len(vocab), special_ids, num_masked, multipliers
    )


class Problem(NamedTuple):
    number: int  # of the example in the block
    kind: str  # "features", "ids" or "masks"
    text: str


def check_block(
    payloads: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    rules: Rules,
    places: Callable[[int], str],
    max_problems: int = 100,
) -> tuple[list[Problem], np.ndarray, Totals]:
    """Judges the examples payloads[starts[k]:ends[k]].

    payloads: uint8 [bytes]; starts, ends: int64 [K]; places: function of k that names an example in
    messages. Returns (problems, hashes, totals): the first `max_problems`; uint64 [K], the hash of
    each example's values, whatever its encoding, 0 for those with a problem; Totals of those
    without.
    """
    lengths = feature_lengths(rules.max_seq_length, rules.max_predictions_per_seq)
    decoder = Decoder(lengths)
    batch = {
        feature.name: np.empty(
            (_ROWS, lengths[feature.name]), "f4" if feature.dtype == "float32" else "i4"
        )
        for feature in FEATURES
    }
    codes, hashes = np.empty(len(starts), np.uint8), np.zeros(len(starts), np.uint64)
    totals = np.zeros(len(Totals._fields), np.int64)
    for first in range(0, len(starts), _ROWS):
        some = slice(first, first + _ROWS)
        for row in decoder.fill_rows(payloads, starts[some], ends[some], batch):
            payload = payloads[starts[first + row] : ends[first + row]].tobytes()
            _decode_readably(payload, batch, row, rules)
        judge_examples(tuple(batch.values()), rules, codes[some], hashes[some], totals)
    problems = [
        Problem(k, *_in_words(payloads[starts[k] : ends[k]].tobytes(), codes[k], rules, places(k)))
        for k in np.flatnonzero(codes)[:max_problems].tolist()
    ]
    return problems, hashes, Totals(*totals.tolist())


def _decode_readably(payload, batch, row, rules):
    """Fills a row of `batch`; with zeros, which are no example, if the payload (bytes) is none."""
    try:
        example = _decode(payload, rules, "")
    except DataError:
        example = dict.fromkeys(batch, np.zeros(1))
    for name, values in example.items():
        narrow = values.astype(batch[name].dtype)
        batch[name][row] = np.where(narrow == values, narrow, _MISFIT)


def _decode(payload, rules, place):
    example = decode_example(payload, place)
    check_lengths(example, rules.max_seq_length, rules.max_predictions_per_seq, place)
    return example


# --------------------------------------------------------------------------------------------------
# The rules. A code is the number of the rule that an example breaks, 0: none.

(
    _MASK, _IDS, _PADDING, _SEGMENTS, _SPECIAL, _NEXT_SENTENCE, _WEIGHTS, _COUNT, _UNUSED,
    _LABELS, _POSITIONS,
) = range(1, 12)  # fmt: skip
_WORDS = {
    _MASK: ("masks", "input_mask is not ones followed by zeros"),
    _IDS: ("ids", "input_ids holds {bad_id}, the vocabulary has {vocab_size:,} tokens "
                  "(0 to {last_id:,})"),
    _PADDING: ("ids", "input_ids is not 0 where input_mask is"),
    _SEGMENTS: ("masks", "segment_ids is not zeros, ones for the second text, zeros for the "
                         "padding"),
    _SPECIAL: ("ids", "expected [CLS] A [SEP] B [SEP] ({cls} ... {sep} ... {sep}) as segment_ids "
                      "divides it"),
    _NEXT_SENTENCE: ("features", "next_sentence_labels is {label}, expected 0 or 1"),
    _WEIGHTS: ("masks", "masked_lm_weights is not 1.0s followed by 0.0s"),
    _COUNT: ("masks", "{count} of {length} tokens are masked, expected {num_masked}: another "
                      "--masked_lm_prob or --max_predictions_per_seq"),
    _UNUSED: ("masks", "masked_lm_ids or masked_lm_positions is not 0 where masked_lm_weights is"),
    _LABELS: ("ids", "masked_lm_ids holds {bad_label}, the vocabulary has {vocab_size:,} tokens"),
    _POSITIONS: ("masks", "masked_lm_positions is not ascending within the two texts (1 to "
                          "{last_position}, not {first_sep})"),
}  # fmt: skip


def _in_words(payload, code, rules, place):
    """Returns (kind, message) of what is wrong with an example, which breaks the rule `code`."""
    try:
        example = _decode(payload, rules, place)
    except DataError as error:
        return "features", str(error)
    length, b_length, count = (
        np.count_nonzero(example[name])
        for name in ("input_mask", "segment_ids", "masked_lm_weights")
    )
    kind, words = _WORDS[code]
    return kind, f"{place}: " + words.format(
        bad_id=_first_bad(example["input_ids"], rules),
        bad_label=_first_bad(example["masked_lm_ids"], rules),
        vocab_size=rules.vocab_size, last_id=rules.vocab_size - 1,
        cls=rules.special_ids[0], sep=rules.special_ids[1],
        label=example["next_sentence_labels"][0],
        length=length, count=count, num_masked=rules.num_masked[length],
        last_position=length - 2, first_sep=length - b_length - 1,
    )  # fmt: skip


def _first_bad(ids, rules):
    return next((value for value in ids.tolist() if not 0 <= value < rules.vocab_size), None)


@kernel
def judge_examples(
    columns: tuple[np.ndarray, ...],
    rules: Rules,
    codes: np.ndarray,
    hashes: np.ndarray,
    totals: np.ndarray,
) -> None:
    """Writes the code of each example, and the hash of one without a problem; adds up the totals.

    columns: in the order of FEATURES, int32 or float32 [K or more, length]. codes: uint8 [K].
    hashes: uint64 [K], 0 before. totals: int64 [6], in the order of Totals.
    """
    ids, mask, labels, positions, weights, next_sentence, segments = columns
    for k in range(len(codes)):
        length, count = _count_ones(mask[k]), _count_ones(weights[k])
        second = length - _count_ones(segments[k])  # where the second text begins
        codes[k] = _broken_rule(
            ids[k], mask[k], labels[k], positions[k], weights[k], next_sentence[k, 0], segments[k],
            length, second, count, rules,
        )  # fmt: skip
        if codes[k] == 0:
            total = (
                _weighted_sum(ids[k], rules.multipliers[0])
                + np.uint64(length) * rules.multipliers[1, 0]
                + _weighted_sum(labels[k], rules.multipliers[2])
                + _weighted_sum(positions[k], rules.multipliers[3])
                + np.uint64(count) * rules.multipliers[4, 0]
                + np.uint64(next_sentence[k, 0]) * rules.multipliers[5, 0]
                + np.uint64(length - second) * rules.multipliers[6, 0]
            )
            hashes[k] = (total ^ total >> np.uint64(32)) * rules.multipliers[5, 1]
            totals[0] += length
            for j in range(np.uint64(length)):
                totals[1] += ids[k, j] == rules.special_ids[2]
            totals[2] += count
            for j in range(np.uint64(count)):
                totals[3] += ids[k, positions[k, j]] == rules.special_ids[3]
            totals[4] += next_sentence[k, 0]
            totals[5] = max(totals[5], _largest(ids[k]))


@kernel
def _broken_rule(
    ids, mask, labels, positions, weights, next_sentence, segments, length, second, count, rules
):
    cls, sep = rules.special_ids[0], rules.special_ids[1]
    if not _is_run(mask, 0, length):
        return _MASK
    if _largest(ids) >= rules.vocab_size:
        return _IDS
    if _largest(ids[length:]) > 0:
        return _PADDING
    if not _is_run(segments, second, length):
        return _SEGMENTS
    if second < 3 or length - second < 2:
        return _SPECIAL
    if ids[0] != cls or ids[second - 1] != sep or ids[length - 1] != sep:
        return _SPECIAL
    if not 0 <= next_sentence <= 1:
        return _NEXT_SENTENCE
    if not _is_run(weights, 0, count):
        return _WEIGHTS
    if rules.num_masked[length] >= 0 and rules.num_masked[length] != count:
        return _COUNT
    if _largest(labels[count:]) > 0 or _largest(positions[count:]) > 0:
        return _UNUSED
    if _largest(labels) >= rules.vocab_size:
        return _LABELS
    last = 0
    for j in range(np.uint64(count)):
        if not last < positions[j] < length - 1 or positions[j] == second - 1:
            return _POSITIONS
        last = positions[j]
    return 0


@kernel
def _count_ones(values):
    count = 0
    for j in range(np.uint64(len(values))):
        count += values[j] == 1
    return count


@kernel
def _is_run(values, begin, end):
    """Whether the values are 1 from `begin` up to `end` and 0 elsewhere."""
    different = 0
    for j in range(np.uint64(len(values))):
        different += values[j] != (np.uint64(begin) <= j < np.uint64(end))
    return different == 0


@kernel
def _largest(values):
    """The largest of int32 values as unsigned numbers: one below 0 is larger than all others."""
    largest = np.uint32(0)
    for j in range(np.uint64(len(values))):
        largest = max(largest, np.uint32(values[j]))
    return np.int64(largest)


@kernel
def _weighted_sum(values, multipliers):
    total = np.uint64(0)
    for j in range(np.uint64(len(values))):
        total += np.uint64(values[j]) * multipliers[j]
    return total
