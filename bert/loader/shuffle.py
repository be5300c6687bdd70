"""The order of an epoch: a permutation of all records, a function of (seed, epoch) alone, computed
block by block.

Records are cut into chunks of consecutive records, which lie together on the disk. In four steps:

1. the chunks are permuted over the whole epoch;
2. the permuted chunks, laid end to end, are cut into blocks of BLOCK_RECORDS records;
3. each block is cut into LANES lanes, and each lane is permuted record by record;
4. the lanes take turns: position p of a block is of lane p mod LANES.

A batch thus takes its records from as many places of the epoch as it has records. Rank r of R takes
the positions r, r + R, r + 2R, ...: whole lanes where R divides LANES, so that no rank reads chunks
of which it needs only a part. The order does not depend on R or the batch size, and any position
can be had without those before it.

Random numbers: SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014; the constants are those of Vigna's public-domain splitmix64.c). Integers only: the same
order on every machine, always.
"""

from collections.abc import Iterator

import numpy as np

from bert.common.kernels import inlined_kernel, kernel

# 2**7 * 3: the number of ranks usually divides it. 192 records a lane are 3 whole chunks of
# MAX_CHUNK_RECORDS.
LANES = 384
BLOCK_RECORDS = 192 * LANES  # 184 MB of records of 2,500 bytes, over all ranks
FILE_ORDER_BLOCK_RECORDS = 4096  # without a shuffle nothing is gained by more
# 160 kB of MLPerf's records: random reads of this size come at nine tenths of the speed of long
# ones (benchmarks/loader.py --disk).
MAX_CHUNK_RECORDS = 64
# Chunks get shorter for small sets, so that these are permuted record by record.
_MIN_CHUNKS = 1 << 16

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_HALF = np.uint64(32)


def records_per_chunk(num_records: int) -> int:
    """Returns the number of consecutive records that are read together."""
    return min(MAX_CHUNK_RECORDS, max(1, num_records // _MIN_CHUNKS))


class EpochOrder:
    """The order of one epoch of `num_records` records. `shuffle=False`: file order, the same in
    each epoch.

    Attribute `block_records`: records of every block but the last. Takes 4 bytes a chunk: 10 MB for
    MLPerf's 157 million records.
    """

    def __init__(self, num_records: int, seed: int, epoch: int, shuffle: bool):
        self.num_records = num_records
        self.block_records = BLOCK_RECORDS if shuffle else FILE_ORDER_BLOCK_RECORDS
        self._shuffle = shuffle
        if shuffle:
            self._key = _stream(seed % 2**64, epoch)
            self._chunk_records = records_per_chunk(num_records)
            self._chunks = np.arange(-(-num_records // self._chunk_records), dtype=np.int32)
            _permute(self._chunks, _stream(self._key, 0))
            # The last chunk of the set may be short; behind its place in the order everything moves
            # up.
            (place,) = np.flatnonzero(self._chunks == len(self._chunks) - 1)
            missing = len(self._chunks) * self._chunk_records - num_records
            self._gap = np.array([(place + 1) * self._chunk_records - missing, missing])

    def block(self, number: int) -> np.ndarray:
        """Returns the record numbers (int64 [n]) at positions number * block_records, ... of the
        epoch.

        n is block_records, or less in the last block.
        """
        first = number * self.block_records
        end = min(first + self.block_records, self.num_records)
        if not self._shuffle:
            return np.arange(first, end)
        records = np.empty(end - first, np.int64)
        lane = np.empty(-(-len(records) // LANES), np.int64)
        _fill_block(
            records,
            first,
            self._chunks,
            self._chunk_records,
            self._gap,
            _stream(self._key, 1 + number),
            lane,
        )
        return records

    def cut_by_block(self, positions: range) -> Iterator[range]:
        """Yields the parts of a range of ascending positions that lie in one block each."""
        while positions:
            end = (positions.start // self.block_records + 1) * self.block_records
            part = range(positions.start, min(positions.stop, end), positions.step)
            yield part
            positions = positions[len(part) :]

    def records(self, positions: range) -> np.ndarray:
        """Returns the record numbers (int64 [n]) at a range of ascending positions of the epoch."""
        numbers = [np.empty(0, np.int64)]
        for part in self.cut_by_block(positions):
            block, offset = divmod(part.start, self.block_records)
            numbers.append(self.block(block)[offset : offset + part.stop - part.start : part.step])
        return np.concatenate(numbers)


def _stream(key, number):
    """Returns the key (uint64) of the stream of random numbers that has this number below `key`."""
    return np.uint64(_derive(np.uint64(key), np.uint64(number)))


# --------------------------------------------------------------------------------------------------
# Kernels. In numba, unsigned 64-bit numbers wrap around as they do in C.


@inlined_kernel
def _mix(state):
    """SplitMix64's output function, a bijection of uint64."""
    state = (state ^ (state >> _SHIFTS[0])) * _MULTIPLIERS[0]
    state = (state ^ (state >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return state ^ (state >> _SHIFTS[2])


@kernel
def _derive(key, number):
    """`_stream` of two uint64."""
    return _mix(_mix(key + _GAMMA) + (number + np.uint64(1)) * _GAMMA)


@kernel
def _permute(items, key):
    """Fisher-Yates shuffle in place; `items` has fewer than 2**32 entries.

    A place is drawn as the high half of a 32-bit number times n: its probability is wrong by n /
    2**32 of itself at most.
    """
    for last in range(len(items) - 1, 0, -1):
        key += _GAMMA
        place = ((_mix(key) >> _HALF) * np.uint64(last + 1)) >> _HALF
        items[last], items[place] = items[place], items[last]


@kernel
def _fill_block(records, first, chunks, chunk_records, gap, key, lane):
    """Fills `records` (int64 [n]) with the record numbers of the block that begins at position
    `first`.

    chunks: int32 [C], the epoch's order of chunks. gap: int64 [2], the position at which the short
    chunk ends, and what it lacks. lane: int64, room for one lane.
    """
    count = len(records)
    start = first
    for lane_number in range(min(LANES, count)):
        size = count // LANES + (lane_number < count % LANES)
        for slot in range(size):
            lane[slot] = start + slot
        key = _derive(key, np.uint64(lane_number))
        _permute(lane[:size], key)
        for slot in range(size):
            position = lane[slot]
            if position >= gap[0]:
                position += gap[1]
            records[lane_number + slot * LANES] = (
                chunks[position // chunk_records] * chunk_records + position % chunk_records
            )
        start += size
