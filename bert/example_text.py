"""A pretraining example in words, for a person to look at."""

import textwrap

import numpy as np

_WIDTH = 120


def example_as_text(example, tokens):
    """Returns what a decoded example says, as lines of text: both segments, the masked tokens, the next sentence label.

    example: {feature name: array}, as bert/example.py's `decode_example` returns it. tokens: list [vocabulary size] of str,
    by id; an id beyond it is shown as `<id 40000>`. Of a prediction its position, what stands there and what stood there.
    """
    used = int(example["input_mask"].sum())
    words = [_word(token_id, tokens) for token_id in example["input_ids"][:used]]
    in_second = example["segment_ids"][:used] == 1
    labels = _labels(example, tokens)
    is_random = int(example["next_sentence_labels"][0])
    masked = [f"{position} {words[position] if position < used else '<padding>'} <- {label};" for position, label in labels]
    return "\n".join(
        [
            _paragraph("A:", [word for word, second in zip(words, in_second) if not second]),
            _paragraph("B:", [word for word, second in zip(words, in_second) if second]),
            _paragraph("masked:", masked),
            f"next sentence label: {is_random} ({'B is from another document' if is_random else 'B follows A'})",
            f"length: {used} of {len(example['input_ids'])} tokens, {len(labels)} of {len(example['masked_lm_ids'])} predictions",
        ]
    )


def _labels(example, tokens):
    """Returns [(position, token that stood there)] of the predictions that count."""
    counted = np.flatnonzero(example["masked_lm_weights"])
    positions, ids = example["masked_lm_positions"][counted].tolist(), example["masked_lm_ids"][counted]
    return [(position, _word(token_id, tokens)) for position, token_id in zip(positions, ids)]


def _word(token_id, tokens):
    return tokens[token_id] if 0 <= token_id < len(tokens) else f"<id {token_id}>"


def _paragraph(title, words):
    return textwrap.fill(
        " ".join([title, *words]), _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
