"""The batches of one rank in one epoch: read ahead block by block, decoded by threads, given out in
order.
"""

import collections
import concurrent.futures
import contextlib
from collections.abc import Generator, Iterable

import numpy as np

from bert.examples.batch import indices_of
from bert.loader.shares import Part
from bert.loader.source import Source

_BLOCKS_AHEAD = 1  # read while the batches of the block before are decoded


def iterate_batches(
    source: Source,
    parts: Iterable[Part],
    batch_size: int,
    num_threads: int,
    prefetch: int,
    indices: bool = False,
) -> Generator[tuple[np.ndarray, ...]]:
    """Yields the records of `parts` (see bert/loader/shares.py), `batch_size` at a time, as
    Reader.decode returns them; with `indices`, followed by the arrays of `indices_of`.

    Up to `prefetch` batches are decoded ahead by `num_threads` threads. Ends its threads when it is
    closed or collected; what fails in them is raised here.
    """
    reader = source.reader()
    with contextlib.closing(reader), _threads(1) as reading, _threads(num_threads) as decoding:

        def read(numbers):
            return reader.read(numbers())

        def decode(pieces):
            arrays = reader.decode([(records.result(), rows) for records, rows in pieces])
            if not indices:
                return arrays
            batch = source.layout.split(*arrays)
            found = indices_of(batch["input_mask"], batch["masked_lm_weights"])
            return (*arrays, *found.values())

        reads = _ahead(
            ((reading.submit(read, numbers), count) for count, numbers in parts), _BLOCKS_AHEAD
        )
        for batch in _ahead(
            (decoding.submit(decode, pieces) for pieces in _cut_into_batches(reads, batch_size)),
            prefetch,
        ):
            yield batch.result()


@contextlib.contextmanager
def _threads(count):
    pool = concurrent.futures.ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(items, count):
    """Yields `items`, having taken `count` more from the iterator than it has given."""
    taken: collections.deque = collections.deque()
    for item in items:
        taken.append(item)
        if len(taken) > count:
            yield taken.popleft()
    while taken:
        yield taken.popleft()


def _cut_into_batches(reads, batch_size):
    """(Future, its number of rows) ... -> for each batch, a list of (future, slice of its rows)."""
    pieces, missing = [], batch_size
    for records, count in reads:
        row = 0
        while row < count:
            end = min(row + missing, count)
            pieces.append((records, slice(row, end)))
            missing -= end - row
            row = end
            if missing == 0:
                yield pieces
                pieces, missing = [], batch_size
    if pieces:
        yield pieces
