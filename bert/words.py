"""A decoded example as words that a person can read, with what was done to them."""

_SPECIAL = ("[CLS]", "[SEP]", "[PAD]")


def example_words(example, pieces):
    """Returns lines of text: both segments in words, the label, the counts.

    example: {feature name: array}, as bert/example.py decodes it. pieces: list of the vocabulary's tokens by id. Of a piece
    that the model must predict, both are shown: {[MASK]: right}, {wrong: right}, or {=right} if it was left as it is.
    """
    length = int(example["input_mask"].sum())
    count = int((example["masked_lm_weights"] > 0).sum())
    tokens = [pieces[number] for number in example["input_ids"][:length]]
    is_second = example["segment_ids"][:length] == 1
    marked = list(tokens)
    for place, number in zip(example["masked_lm_positions"][:count], example["masked_lm_ids"][:count]):
        right = pieces[number]
        marked[place] = f"{{={right}}}" if tokens[place] == right else f"{{{tokens[place]}: {right}}}"
    segments = [
        join_pieces(
            [word for word, token, second in zip(marked, tokens, is_second) if second == which and token not in _SPECIAL]
        )
        for which in (False, True)
    ]
    label = "1, B is from another place" if example["next_sentence_labels"][0] else "0, B follows A"
    return [
        f"A: {segments[0]}", f"B: {segments[1]}", f"next_sentence_labels: {label}",
        f"{length} of {len(example['input_ids'])} tokens, {count} of {len(example['masked_lm_ids'])} to predict",
    ]  # fmt: skip


def join_pieces(pieces):
    """Returns WordPiece tokens as text: `##` pieces stand at the one before them, unless either is in braces."""
    text = ""
    for piece in pieces:
        is_rest = piece.startswith("##") and text and not text.endswith("}")
        text += piece[2:] if is_rest else f" {piece}"
    return text.strip()
