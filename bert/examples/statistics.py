"""Counts over many examples: lengths, masks, labels, pieces. Arrays in, sums out."""

from typing import NamedTuple

import numpy as np


class Census(NamedTuple):
    """Sums over records, each an int64 array; two of them are added field by field."""

    lengths: np.ndarray  # [S + 1], records by number of tokens
    masks: np.ndarray  # [P + 1], records by number of predictions
    # [3], predictions whose piece was replaced by [MASK], by another piece, or left as it was.
    changes: np.ndarray
    labels: np.ndarray  # [2], records by next-sentence label; 1: from another place
    pieces: np.ndarray  # [V], how often each piece stands in the text, before masking

    # Adds the columns; tuples would be joined.
    def __add__(self, other: "Census") -> "Census":  # type: ignore[override]
        return Census(*map(np.add, self, other))

    @property
    def records(self) -> int:
        return int(self.lengths.sum())

    @property
    def padding(self) -> float:
        """Share of the positions that hold padding."""
        size = len(self.lengths) - 1
        return 1 - float(self.lengths @ np.arange(size + 1)) / (self.records * size)


def take_census(batch: dict[str, np.ndarray], vocab_size: int, mask_id: int) -> Census:
    """Returns the Census of a batch ({feature name: array [B, length]}) whose ids are below
    `vocab_size`.
    """
    is_token, is_prediction = batch["input_mask"] == 1, batch["masked_lm_weights"] > 0
    right, positions = batch["masked_lm_ids"], batch["masked_lm_positions"]
    shown = np.take_along_axis(batch["input_ids"], positions, axis=1)
    is_mask, is_kept = (shown == mask_id)[is_prediction], (shown == right)[is_prediction]
    text = batch["input_ids"].copy()
    rows = np.nonzero(is_prediction)[0]
    text[rows, positions[is_prediction]] = right[is_prediction]
    return Census(
        np.bincount(is_token.sum(1), minlength=is_token.shape[1] + 1),
        np.bincount(is_prediction.sum(1), minlength=is_prediction.shape[1] + 1),
        np.array([is_mask.sum(), (~is_mask & ~is_kept).sum(), (is_kept & ~is_mask).sum()]),
        np.bincount(batch["next_sentence_labels"][:, 0] != 0, minlength=2),
        np.bincount(text[is_token], minlength=vocab_size),
    )
