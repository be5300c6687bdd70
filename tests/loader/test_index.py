"""bert/loader/index.py and bert/loader/reader.py: every line of an index checked, any records read,
corruption reported with its byte.
"""

import os

import numpy as np
import pytest

import bert.loader.reader
import bert.loader.shuffle
from bert.common.files import DataError
from bert.examples.example import decode_example
from bert.examples.tfrecord import FRAME_BYTES, TFRecordFile, frame
from bert.loader import index
from bert.loader.index import build_missing_indexes, pair_by_name, read_indexes, read_samples
from bert.loader.reader import RecordReader

SIZES = (37, 1, 64, 200, 3)


@pytest.fixture(params=[1, 7, 64])
def chunk_records(request, monkeypatch):
    """Chunks of several lengths, which for so few records are of one record otherwise."""
    monkeypatch.setattr(bert.loader.shuffle, "_MIN_CHUNKS", sum(SIZES) // request.param)
    return request.param


def open_index(paths, index_paths):
    return read_indexes(pair_by_name(paths, index_paths), num_threads=2)


def numbers_in(records):
    return [
        decode_example(records.data[start:end].tobytes(), "")["input_ids"][0]
        for start, end in zip(records.starts, records.ends)
    ]


def test_where_the_chunks_begin(tfrecord_folder, chunk_records, monkeypatch):
    monkeypatch.setattr(index, "_READ_BYTES", 50)  # lines cut anywhere
    paths, index_paths = tfrecord_folder(SIZES)
    found = open_index(paths, index_paths)
    begins, start = [], 0
    for path in paths:
        with TFRecordFile(path) as file:
            begins += [start + offset for offset, _ in file.extents()]
        start += os.path.getsize(path)
    assert found.chunk_records == chunk_records
    assert found.anchors.tolist() == begins[::chunk_records] + [start]
    assert found.num_records == sum(SIZES)
    assert found.first_records.tolist() == [0, 37, 38, 102, 302, 305]
    assert found.file_of_record(38) == (paths[2], 0) and found.file_of_record(304) == (paths[4], 2)


@pytest.mark.parametrize("step", [1, 3, 50])
def test_any_records_in_any_order(tfrecord_folder, chunk_records, step, monkeypatch):
    monkeypatch.setattr(bert.loader.reader, "_MAX_OPEN_FILES", 2)
    reader = RecordReader(open_index(*tfrecord_folder(SIZES)))
    numbers = np.random.default_rng(step).permutation(sum(SIZES))[::step]
    assert numbers_in(reader.read(numbers)) == numbers.tolist()
    assert len(reader._files) <= 2
    reader.close()


def test_place_of_a_record(tfrecord_folder, chunk_records):
    paths, index_paths = tfrecord_folder(SIZES)
    reader = RecordReader(open_index(paths, index_paths))
    with TFRecordFile(paths[3]) as file:
        offsets = [offset for offset, _ in file.extents()]
    assert reader.place(102 + 77) == f"{paths[3]}: record 77 at byte {offsets[77]}"


def test_corrupt_header_is_reported(tfrecord_folder, chunk_records):
    paths, index_paths = tfrecord_folder(SIZES)
    found = open_index(paths, index_paths)
    with TFRecordFile(paths[3]) as file:
        offsets = [offset for offset, _ in file.extents()]
    with open(paths[3], "r+b") as file:
        file.seek(offsets[100])
        file.write(b"\xff")
    with pytest.raises(DataError, match=f"{paths[3]}: byte {offsets[100]}: no record starts here"):
        RecordReader(found).read(np.arange(sum(SIZES)))


def test_file_that_changes_under_the_loader(tfrecord_folder, chunk_records):
    paths, index_paths = tfrecord_folder(SIZES)
    found = open_index(paths, index_paths)
    with open(paths[3], "r+b") as file:
        file.truncate(os.path.getsize(paths[3]) // 2)
    with pytest.raises(DataError, match=f"{paths[3]}: ends at byte .* shorter"):
        RecordReader(found).read(np.arange(sum(SIZES)))
    os.remove(paths[3])
    with pytest.raises(OSError, match=paths[3]):
        RecordReader(found).read(np.arange(sum(SIZES)))


def test_other_records_than_the_index_says(tfrecord_folder, chunk_records):
    (path,), index_paths = tfrecord_folder([200])
    found = open_index([path], index_paths)
    with open(path, "r+b") as file:
        file.write(frame(bytes(os.path.getsize(path) - FRAME_BYTES)))
    with pytest.raises(DataError, match=f"{path}: .*(has changed|no record starts here)"):
        RecordReader(found).read(np.arange(200))
    with pytest.raises(DataError, match=f"{path}: about byte 0: the file has changed"):
        RecordReader(found).read(np.arange(found.chunk_records))


GOOD = b"0 100\n100 50\n150 30\n"


@pytest.mark.parametrize(
    "text, words",
    [
        (b"", "it is empty"),
        (GOOD[:-1], "ends inside a line"),
        (GOOD + b"180 20", "ends inside a line"),
        (b"garbage\n", "line 1 is 'garbage', expected `0 <size>`"),
        (b"0 100\n100 50\n160 20\n", "line 3 is '160 20', expected `150 <size>`"),
        (b"0 100\n0 100\n", "line 2 is '0 100', expected `100 <size>`"),
        (b"100 50\n150 30\n", "line 1 is '100 50', expected `0 <size>`"),
        (b"0 100\n\n100 50\n", "line 2 is ''"),
        (b"0 100 \n100 80\n", "line 1 is '0 100 '"),
        (b"0 100\r\n100 80\r\n", "line 1 is '0 100"),
        (b"0 -100\n", "line 1 is '0 -100'"),
        (b"0 15\n", "line 1 is '0 15'"),
        (b"0 9999999999999999999\n", "line 1 is '0 9999999999999999999'"),
        (b"0 100\n100 50\n", "its last record ends at byte 150, but .* has 180 bytes"),
        (GOOD + b"180 20\n", "its last record ends at byte 200, but .* has 180 bytes"),
        (GOOD + b"trailing words\n", "line 4 is 'trailing words'"),
    ],
)
def test_every_line_is_checked(tmp_path, text, words):
    (tmp_path / "part").write_bytes(bytes(180))
    (tmp_path / "part.idx").write_bytes(text)
    with pytest.raises(DataError, match=f"part.idx: .*{words}.*make_idx.py"):
        open_index([f"{tmp_path}/part"], [f"{tmp_path}/part.idx"])


def test_all_wrong_indexes_are_reported(tfrecord_folder):
    paths, index_paths = tfrecord_folder([3, 4, 5])
    for path in index_paths[::2]:
        open(path, "w").close()
    with pytest.raises(DataError) as error:
        open_index(paths, index_paths)
    assert [path in str(error.value) for path in index_paths] == [True, False, True]


def test_empty_file(tmp_path):
    for name in ("part", "part.idx"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="part: 0 bytes"):
        open_index([f"{tmp_path}/part"], [f"{tmp_path}/part.idx"])


def test_samples_are_records_of_each_file(tfrecord_folder, chunk_records):
    paths, index_paths = tfrecord_folder(SIZES)
    samples = read_samples(open_index(paths, index_paths), num_threads=2)
    numbers = [decode_example(payload, place)["input_ids"][0] for payload, place in samples]
    assert {0, 36, 37, 38, 101, 102, 301, 302, 304} <= set(numbers)
    assert len(numbers) == len(set(numbers)) <= 3 * len(SIZES)


def test_shifted_index_is_refused(tfrecord_folder):
    """Line by line and at its end the index fits the file, but it is that of other records."""
    paths, index_paths = tfrecord_folder([20])
    lines = [tuple(map(int, line.split())) for line in open(index_paths[0])]
    sizes = [size for _, size in lines]
    sizes[-2], sizes[-1] = sizes[-2] - 1, sizes[-1] + 1
    offsets = np.cumsum([0] + sizes[:-1])
    with open(index_paths[0], "w") as file:
        file.writelines(f"{offset} {size}\n" for offset, size in zip(offsets, sizes))
    with pytest.raises(DataError, match=rf"{paths[0]}: byte {offsets[-1]}: no record starts here"):
        read_samples(open_index(paths, index_paths), num_threads=1)


def test_fingerprint_differs_between_files(tfrecord_folder):
    paths, index_paths = tfrecord_folder([3, 4, 4])
    own = open_index(paths, index_paths).fingerprint()
    assert (
        own["files"] == 3
        and own["records"] == 11
        and own["bytes"] == sum(map(os.path.getsize, paths))
    )
    assert open_index(paths, index_paths[::-1]).fingerprint() == own
    assert open_index(paths[:2], index_paths[:2]).fingerprint() != own
    assert open_index(paths[::-1], index_paths).fingerprint() != own
    os.rename(paths[0], f"{paths[0]}x")
    os.rename(index_paths[0], f"{paths[0]}x.idx")
    assert (
        open_index(
            [f"{paths[0]}x", *paths[1:]], [f"{paths[0]}x.idx", *index_paths[1:]]
        ).fingerprint()
        != own
    )


def test_missing_indexes_are_built(tfrecord_folder, tmp_path):
    paths, index_paths = tfrecord_folder([3, 4, 5])
    expected = [open(path).read() for path in index_paths]
    for path in index_paths[1:]:
        os.remove(path)
    assert (
        sorted(build_missing_indexes(paths, index_paths[:1], first=1, num_threads=2)) == index_paths
    )
    assert [open(path).read() for path in index_paths] == expected
    elsewhere = [f"{tmp_path}/new/{os.path.basename(path)}" for path in index_paths]
    assert build_missing_indexes(paths, elsewhere, first=5, num_threads=2) == elsewhere
    assert [open(path).read() for path in elsewhere] == expected
