"""bert/loader/shares.py: every record once, whatever the ranks; balanced shares."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert.loader.shares import balanced, in_turn
from bert.loader.shuffle import EpochOrder


def numbers_of(parts):
    found = [(count, numbers()) for count, numbers in parts]
    assert all(count == len(numbers) for count, numbers in found)
    return np.concatenate([np.empty(0, np.int64), *(numbers for _, numbers in found)])


@given(
    st.integers(1, 3000), st.integers(1, 9), st.integers(1, 40), st.booleans(),
    st.integers(0, 2**32),
)  # fmt: skip
def test_shares_are_the_global_batches(num_records, num_shards, batch_size, shuffle, seed):
    order = EpochOrder(num_records, seed, 0, shuffle)
    small_blocks = SimpleNamespace(block_records=7 * batch_size, records=order.records)
    lengths = np.random.default_rng(seed).integers(3, 512, num_records)
    start = min(num_records, (seed % 3) * batch_size * num_shards)
    plain, dealt = [], []
    for rank in range(num_shards):
        share = (start, num_records, rank, num_shards)
        plain.append(numbers_of(in_turn(order, *share)))
        dealt.append(numbers_of(balanced(small_blocks, *share, batch_size, lengths.__getitem__)))
    assert [len(numbers) for numbers in plain] == [len(numbers) for numbers in dealt]
    for first in range(0, max(map(len, plain)), batch_size):
        step = slice(first, first + batch_size)
        batch, other = (
            np.concatenate([numbers[step] for numbers in ranks]) for ranks in (plain, dealt)
        )
        assert sorted(batch) == sorted(other)


@pytest.mark.parametrize("num_shards, batch_size", [(8, 48), (64, 48), (8, 8), (3, 5)])
def test_tokens_of_the_fullest_rank(num_shards, batch_size):
    """At most the mean and the longest example; by turns it may be much more."""
    lengths = np.random.default_rng(1).integers(10, 512, 20 * num_shards * batch_size)
    order = EpochOrder(len(lengths), 1, 0, True)
    tokens = np.array([
        lengths[numbers_of(
            balanced(order, 0, len(lengths), rank, num_shards, batch_size, lengths.__getitem__)
        )].reshape(-1, batch_size).sum(1)
        for rank in range(num_shards)
    ])  # fmt: skip
    assert (tokens.max(0) - tokens.min(0)).max() <= lengths.max() - lengths.min()


def test_of_one_length_nothing_is_to_be_balanced():
    order = EpochOrder(64, 1, 0, False)
    shares = [
        numbers_of(balanced(order, 0, 64, rank, 4, 4, np.zeros_like)).tolist() for rank in range(4)
    ]
    assert sorted(sum(shares, [])) == list(range(64))
    assert all(share == sorted(share) for share in shares)
