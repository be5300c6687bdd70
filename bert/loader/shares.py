"""Which records of an epoch a rank gets, and when. Either way every record is given once, and the
ranks' batches of a step are together the same global batch.

Both functions yield (K, function): the function returns the numbers (int64 [K]) of the rank's next
K records. It computes, so that it can be called in another thread.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from bert.loader.shuffle import EpochOrder

Part = tuple[int, Callable[[], np.ndarray]]


def in_turn(
    order: EpochOrder, start: int, end: int, shard_id: int, num_shards: int
) -> Iterator[Part]:
    """Of the positions from `start` to below `end`, rank r gets every num_shards-th, from the r-th
    on.
    """
    for part in order.cut_by_block(range(start + shard_id, end, num_shards)):
        yield len(part), functools.partial(order.records, part)


def balanced(
    order: EpochOrder,
    start: int,
    end: int,
    shard_id: int,
    num_shards: int,
    batch_size: int,
    lengths_of: Callable[[np.ndarray], np.ndarray],
) -> Iterator[Part]:
    """Like `in_turn`, but the records of each global batch are dealt out by their lengths, so that
    each rank gets about the same number of tokens: sorted by length, from rank 0 to the last and
    back again. A rank's records keep their order.

    lengths_of: from record numbers (int64 [K]) to tokens of each (int64 [K]).
    """
    global_batch = batch_size * num_shards
    step = global_batch * max(1, order.block_records // global_batch)
    for first in range(start, end, step):
        part = range(first, min(first + step, end))

        def deal(part=part):
            numbers = order.records(part)
            lengths = lengths_of(numbers)
            batches = range(0, len(numbers), global_batch)
            return np.concatenate(
                [
                    numbers[at:][_dealt(lengths[at : at + global_batch], shard_id, num_shards)]
                    for at in batches
                ]
            )

        yield len(part[shard_id::num_shards]), deal


def _dealt(lengths, shard_id, num_shards):
    """Returns the places in `lengths` (int64 [G]) that a rank gets, ascending."""
    longest_first = np.argsort(-lengths, kind="stable")
    rounds, rest = divmod(len(lengths), num_shards)
    whole = longest_first[: rounds * num_shards].reshape(rounds, num_shards)
    own = np.where(np.arange(rounds) % 2 == 0, whole[:, shard_id], whole[:, -1 - shard_id])
    if shard_id < rest:
        own = np.append(own, longest_first[rounds * num_shards + shard_id])
    return np.sort(own)
