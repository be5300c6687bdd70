"""A decoded example as words that a person can read, with what was done to them."""

import textwrap

import numpy as np

_SPECIAL = ("[CLS]", "[SEP]", "[PAD]")
_WIDTH = 120  # columns


def example_words(example: dict[str, np.ndarray], pieces: list[str]) -> str:
    """Returns text of several lines: both segments in words, the label, the counts.

    example: {feature name: array}, as bert/examples/example.py decodes it. pieces: list [vocabulary
    size] of str, by id; an id beyond it is shown as <id 40000>. Of a piece that the model must
    predict, both are shown: {[MASK]: right}, {wrong: right}, or {=right} if it was left as it is. A
    prediction at a position without text has a line of its own.
    """
    length = int(example["input_mask"].sum())
    tokens = [_piece(number, pieces) for number in example["input_ids"][:length]]
    counted = np.flatnonzero(example["masked_lm_weights"])
    marked, outside = list(tokens), []
    for place, number in zip(
        example["masked_lm_positions"][counted].tolist(), example["masked_lm_ids"][counted]
    ):
        right = _piece(number, pieces)
        if 0 <= place < length:
            marked[place] = (
                f"{{={right}}}" if tokens[place] == right else f"{{{tokens[place]}: {right}}}"
            )
        else:
            outside.append(f"position {place}: {right}")
    is_second = example["segment_ids"][:length] == 1
    segments = [
        join_pieces(
            [
                word
                for word, second in zip(marked, is_second)
                if second == which and word not in _SPECIAL
            ]
        )
        for which in (False, True)
    ]
    label = "1, B is from another place" if example["next_sentence_labels"][0] else "0, B follows A"
    return "\n".join([
        _paragraph(f"A: {segments[0]}"), _paragraph(f"B: {segments[1]}"),
        *([_paragraph(f"to predict outside the text: {'; '.join(outside)}")] if outside else []),
        f"next_sentence_labels: {label}",
        f"{length} of {len(example['input_ids'])} tokens, "
        f"{len(counted)} of {len(example['masked_lm_ids'])} to predict",
    ])  # fmt: skip


def join_pieces(pieces: list[str]) -> str:
    """Returns WordPiece tokens as text: `##` pieces stand at the one before them, unless either is
    in braces.
    """
    text = ""
    for piece in pieces:
        is_rest = piece.startswith("##") and text and not text.endswith("}")
        text += piece[2:] if is_rest else f" {piece}"
    return text.strip()


def _piece(number, pieces):
    return pieces[number] if 0 <= number < len(pieces) else f"<id {number}>"


def _paragraph(text):
    return textwrap.fill(
        text, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
