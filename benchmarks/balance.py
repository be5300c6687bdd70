#!/usr/bin/env python3
"""The table of docs/loader.md: tokens of the fullest rank, with and without balance.

python3 benchmarks/balance.py   # lengths as MLPerf's, 10 seconds

Each figure is a mean over 100 global batches. 1.00 is a perfect balance.
"""

import os
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from loader import random_instances

from bert.loader.shares import balanced, in_turn
from bert.loader.shuffle import EpochOrder

STEPS = 100


def spread(lengths: np.ndarray, shares: list, batch_size: int) -> float:
    """Returns the tokens of the fullest rank, divided by the mean; shares: of each rank."""
    tokens = np.array([
        lengths[np.concatenate([numbers() for _, numbers in share])]
        .reshape(-1, batch_size)
        .sum(1)
        for share in shares
    ])  # fmt: skip
    return float((tokens.max(0) / tokens.mean(0)).mean())


def main() -> None:
    print("| examples per rank | ranks | in turn | balanced |\n|---|---|---|---|")
    for batch_size, ranks in ((48, 8), (48, 64), (8, 8), (8, 64)):
        count = STEPS * batch_size * ranks
        lengths = random_instances(count, 1).lengths()
        order = EpochOrder(count, 1, 0, True)
        plain = [in_turn(order, 0, count, rank, ranks) for rank in range(ranks)]
        dealt = [
            balanced(order, 0, count, rank, ranks, batch_size, lengths.__getitem__)
            for rank in range(ranks)
        ]
        print(
            f"| {batch_size} | {ranks} | {spread(lengths, plain, batch_size):.3f} "
            f"| {spread(lengths, dealt, batch_size):.3f} |"
        )


if __name__ == "__main__":
    main()
