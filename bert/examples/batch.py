"""A batch of examples in memory: two arrays, which are cut into the seven features; and the indices
of what in it is not padding.

Shapes: B examples, S positions, P predictions per example, T tokens that are not padding, M
predictions whose weight is not 0.
"""

from typing import Any, TypeVar

import numpy as np

from bert.examples.example import FEATURES

INTEGER_FEATURES = tuple(feature.name for feature in FEATURES if feature.dtype == "int64")
Array = TypeVar("Array", bound=Any)  # numpy or torch


def indices_of(input_mask: np.ndarray, masked_lm_weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the indices of what a training step computes; found here, no step waits for a GPU to
    find them.

    input_mask: [B, S]; masked_lm_weights: [B, P]. `token_indices`: int64 [T], of positions among
    the B * S. `token_offsets`: int32 [B + 1], the place of each example's first token in them, and
    T. `prediction_indices`: int64 [M], of predictions among the B * P.
    """
    lengths = np.count_nonzero(input_mask, axis=1)
    return {
        "token_indices": np.flatnonzero(input_mask),
        "token_offsets": np.append(0, lengths.cumsum()).astype(np.int32),
        "prediction_indices": np.flatnonzero(masked_lm_weights),
    }


INDICES = tuple(indices_of(np.empty((0, 0)), np.empty((0, 0))))


class BatchLayout:
    """Where the features of B examples lie in int64 [n] and float32 [B * P]: all rows of one
    integer feature, then of the next; and the weights.

    lengths: {feature name: number of values}.
    """

    def __init__(self, lengths: dict[str, int]):
        self.lengths = lengths
        self._integers_per_row = sum(lengths[name] for name in INTEGER_FEATURES)

    def empty(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns both arrays for `count` examples, not filled."""
        return (
            np.empty(count * self._integers_per_row, np.int64),
            np.empty(count * self.lengths["masked_lm_weights"], np.float32),
        )

    def split(self, integers: Array, weights: Array) -> dict[str, Array]:
        """Returns {feature name: view [B, length]} of both arrays, numpy or torch; contiguous."""
        count, start = len(weights) // self.lengths["masked_lm_weights"], 0
        batch: dict[str, Array] = {}
        for name in INTEGER_FEATURES:
            end = start + count * self.lengths[name]
            batch[name] = integers[start:end].reshape(count, self.lengths[name])
            start = end
        return batch | {
            "masked_lm_weights": weights.reshape(count, self.lengths["masked_lm_weights"])
        }
