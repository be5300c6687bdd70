"""The reference implementation of bert/loader/shuffle.py: the order of an epoch, from its
definition.
"""

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(state):
    """SplitMix64's output function."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def derive(key, number):
    """The key of stream `number` below `key`."""
    return mix(mix(key + GAMMA & MASK) + (number + 1) * GAMMA & MASK)


def permute(items, key):
    """Fisher-Yates shuffle in place."""
    for last in range(len(items) - 1, 0, -1):
        key = key + GAMMA & MASK
        place = (mix(key) >> 32) * (last + 1) >> 32
        items[last], items[place] = items[place], items[last]


def epoch_order(num_records, seed, epoch, chunk_records, block_records, lanes):
    """Returns the record numbers of an epoch in their order."""
    key = derive(seed % 2**64, epoch)
    records = list(range(num_records))
    chunks = [
        records[start : start + chunk_records] for start in range(0, num_records, chunk_records)
    ]
    permute(chunks, derive(key, 0))
    line = [record for chunk in chunks for record in chunk]
    return [
        record
        for number, start in enumerate(range(0, num_records, block_records))
        for record in block_order(
            line[start : start + block_records], derive(key, 1 + number), lanes
        )
    ]


def block_order(records, key, lanes):
    """Cuts a block into lanes, permutes each, and deals them out in turn."""
    size, rest = divmod(len(records), lanes)
    dealt = [None] * len(records)
    start = 0
    for number in range(min(lanes, len(records))):
        lane = records[start : start + size + (number < rest)]
        start += len(lane)
        key = derive(key, number)
        permute(lane, key)
        dealt[number::lanes] = lane
    return dealt
