"""Kernels that read DALI's index text and walk over the frames of TFRecords in memory. They open no
files.

An index is a line `offset size` for each record, in decimal bytes, frame included; records follow
each other without gaps.
"""

from bert.common.kernels import kernel
from bert.examples.tfrecord import FRAME_BYTES, HEADER_BYTES

_NEWLINE, _SPACE, _ZERO = 10, 32, 48
_MAX_DIGITS = 18  # below 2**63


@kernel
def count_newlines(text):
    """Returns the number of newlines in `text` (uint8 [n])."""
    count = 0
    for octet in text:
        count += octet == _NEWLINE
    return count


@kernel
def scan_index(text, progress, end_record, chunk_records, anchors, file_start):
    """Checks whole lines of an index, and keeps where each chunk begins.

    text: uint8 [n]. progress: int64 [3], updated: number of the next record in all files, the byte
    at which it must begin in its file, the byte at which the record before it began. anchors:
    int64, a place for each chunk of `chunk_records` records of all files, gets file_start plus the
    offset of the chunk's first record.

    Returns n if every line follows from the one before it and the last is of a record below
    `end_record`; otherwise the place in `text` of the first line that does not.
    """
    record, expected, last = progress
    position, size_of_text = 0, len(text)
    until_chunk = -record % chunk_records
    numbers = (0, 0)
    while position < size_of_text and record < end_record:
        line = position
        for separator in (_SPACE, _NEWLINE):
            value, start = 0, position
            while position < size_of_text and _ZERO <= text[position] < _ZERO + 10:
                value = 10 * value + (text[position] - _ZERO)
                position += 1
            if (
                not 0 < position - start <= _MAX_DIGITS
                or position == size_of_text
                or text[position] != separator
            ):
                position = -1
                break
            position += 1
            numbers = (numbers[1], value)
        if position < 0 or numbers[0] != expected or numbers[1] < FRAME_BYTES:
            position = line
            break
        if until_chunk == 0:
            anchors[record // chunk_records] = file_start + expected
            until_chunk = chunk_records
        until_chunk -= 1
        last = expected
        expected += numbers[1]
        record += 1
    progress[0], progress[1], progress[2] = record, expected, last
    return position


@kernel
def find_payloads(data, chunk_starts, chunk_records, wanted, payload_starts, payload_ends):
    """Walks over the records of chunks that lie one after the other in memory, and finds the wanted
    ones.

    data: uint8 [n]. chunk_starts: int64 [C + 1], places in `data`. wanted: int64 [K], chunk *
    chunk_records + place in the chunk, ascending. payload_starts, payload_ends: int64 [K], filled.
    Returns -1, or the number of a chunk that is not made of `chunk_records` whole records (fewer in
    the last one).
    """
    found = 0
    for chunk in range(len(chunk_starts) - 1):
        start, end = chunk_starts[chunk], chunk_starts[chunk + 1]
        place = chunk * chunk_records
        while start < end:
            if end - start < FRAME_BYTES:
                return chunk
            length = 0
            for octet in range(8):
                length |= data[start + octet] << (8 * octet)
            if not 0 <= length <= end - start - FRAME_BYTES:
                return chunk
            if found < len(wanted) and wanted[found] == place:
                payload_starts[found] = start + HEADER_BYTES
                payload_ends[found] = start + HEADER_BYTES + length
                found += 1
            start += FRAME_BYTES + length
            place += 1
        if found < len(wanted) and wanted[found] < (chunk + 1) * chunk_records:
            return chunk
    return -1
