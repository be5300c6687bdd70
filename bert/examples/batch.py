"""A batch of examples in memory: two arrays, which are cut into the seven features."""

from typing import Any, TypeVar

import numpy as np

from bert.examples.example import FEATURES

INTEGER_FEATURES = tuple(feature.name for feature in FEATURES if feature.dtype == "int64")
Array = TypeVar("Array", bound=Any)  # numpy or torch


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
