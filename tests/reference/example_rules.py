"""What bert/verification/example_check.py asks of an example, its hash and its part of the totals,
readably: of one decoded example at a time.
"""

import numpy as np

from bert.common.files import DataError
from bert.examples.example import FEATURES, check_lengths

_INDEX = {feature.name: index for index, feature in enumerate(FEATURES)}


def problem_of(example, rules, place):
    """Returns what is wrong with a decoded example as (kind, message), or None.

    `place` begins the message.
    """
    try:
        check_lengths(example, rules.max_seq_length, rules.max_predictions_per_seq, place)
    except DataError as error:
        return "features", str(error)
    ids, mask, segments = example["input_ids"], example["input_mask"], example["segment_ids"]
    length = int(np.count_nonzero(mask))
    if not np.array_equal(mask, np.arange(len(mask)) < length):
        return "masks", f"{place}: input_mask is not ones followed by zeros"
    if (ids < 0).any() or (ids >= rules.vocab_size).any():
        bad = ids[(ids < 0) | (ids >= rules.vocab_size)][0]
        return (
            "ids",
            (
                f"{place}: input_ids holds {bad}, the vocabulary has {rules.vocab_size:,} tokens "
                f"(0 to {rules.vocab_size - 1:,})"
            ),
        )
    if ids[length:].any():
        return "ids", f"{place}: input_ids is not 0 where input_mask is"
    b_length = int(np.count_nonzero(segments))
    second = length - b_length
    if not np.array_equal(
        segments, (np.arange(len(ids)) >= second) & (np.arange(len(ids)) < length)
    ):
        return (
            "masks",
            f"{place}: segment_ids is not zeros, ones for the second text, zeros for the padding",
        )
    cls_id, sep_id = rules.special_ids[:2]
    if (
        second < 3
        or b_length < 2
        or ids[0] != cls_id
        or ids[second - 1] != sep_id
        or ids[length - 1] != sep_id
    ):
        return (
            "ids",
            (
                f"{place}: expected [CLS] A [SEP] B [SEP] ({cls_id} ... {sep_id} ... {sep_id}) as "
                "segment_ids divides it"
            ),
        )
    if example["next_sentence_labels"][0] not in (0, 1):
        return (
            "features",
            (
                f"{place}: next_sentence_labels is {example['next_sentence_labels'][0]}, "
                "expected 0 or 1"
            ),
        )
    return _problem_of_predictions(example, rules, place, length, second)


def _problem_of_predictions(example, rules, place, length, second):
    positions, labels, weights = (
        example[f"masked_lm_{name}"] for name in ("positions", "ids", "weights")
    )
    count = int(np.count_nonzero(weights))
    if not np.array_equal(weights, np.arange(len(weights)) < count):
        return "masks", f"{place}: masked_lm_weights is not 1.0s followed by 0.0s"
    if rules.num_masked[length] not in (-1, count):
        return "masks", (
            f"{place}: {count} of {length} tokens are masked, expected {rules.num_masked[length]}: "
            "another --masked_lm_prob or --max_predictions_per_seq"
        )
    if labels[count:].any() or positions[count:].any():
        return (
            "masks",
            f"{place}: masked_lm_ids or masked_lm_positions is not 0 where masked_lm_weights is",
        )
    if (labels < 0).any() or (labels >= rules.vocab_size).any():
        bad = labels[(labels < 0) | (labels >= rules.vocab_size)][0]
        return (
            "ids",
            f"{place}: masked_lm_ids holds {bad}, the vocabulary has {rules.vocab_size:,} tokens",
        )
    used = positions[:count]
    if (
        (np.diff(used) <= 0).any()
        or (used < 1).any()
        or (used >= length - 1).any()
        or (used == second - 1).any()
    ):
        return (
            "masks",
            (
                f"{place}: masked_lm_positions is not ascending within the two texts (1 to "
                f"{length - 2}, not {second - 1})"
            ),
        )
    return None


def hash_of(example, rules):
    """The hash (uint64) of an example's values: sums of value times multiplier, mixed.

    Takes an example without a problem.
    """
    terms = []
    for name in ("input_ids", "masked_lm_ids", "masked_lm_positions", "next_sentence_labels"):
        values = example[name].astype(np.uint64)
        terms.append(values * rules.multipliers[_INDEX[name], : len(values)])
    # Zeros and a run of ones: their number tells all.
    for name in ("input_mask", "segment_ids", "masked_lm_weights"):
        count = np.array([np.count_nonzero(example[name])], np.uint64)
        terms.append(count * rules.multipliers[_INDEX[name], 0])
    total = np.concatenate(terms).sum(dtype=np.uint64)
    total ^= total >> np.uint64(32)
    with np.errstate(over="ignore"):  # modulo 2**64
        return total * rules.multipliers[_INDEX["next_sentence_labels"], 1]


def add_to_totals(example, rules, totals):
    """Adds an example without a problem to `totals`, int64 [6] in the order of Totals."""
    ids, count = example["input_ids"], np.count_nonzero(example["masked_lm_weights"])
    length = np.count_nonzero(example["input_mask"])
    _, _, unk_id, mask_id = rules.special_ids
    totals[:5] += [
        length,
        np.count_nonzero(ids[:length] == unk_id),
        count,
        np.count_nonzero(ids[example["masked_lm_positions"][:count]] == mask_id),
        example["next_sentence_labels"][0],
    ]
    totals[5] = max(totals[5], ids.max())
