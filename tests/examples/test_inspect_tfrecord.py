"""inspect_tfrecord.py: the records asked for, statistics counted by hand, wrong input refused."""

import numpy as np
import pytest
from conftest import EXAMPLE, PIECES, UNICODE_TEXT, assert_refused, create, run_script

from bert.examples.example import decode_example
from bert.examples.statistics import Census, take_census
from bert.examples.tfrecord import TFRecordFile, frame
from tests.reference.example import encode_example


@pytest.fixture
def files(tmp_path):
    """A folder with two files of the example (3 and 2 records), and its vocabulary; returns
    (folder, --vocab_file flag).
    """
    (tmp_path / "data").mkdir()
    for name, count in (("part-0", 3), ("part-1", 2)):
        (tmp_path / "data" / name).write_bytes(frame(encode_example(EXAMPLE)) * count)
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return tmp_path / "data", f"--vocab_file={tmp_path}/vocab.txt"


def test_census_counts():
    batch = {name: np.array([values, values]) for name, values in EXAMPLE.items()}
    census = take_census(batch, len(PIECES), mask_id=3)
    assert census.records == 2 and census.padding == pytest.approx(2 / 12)
    assert census.lengths.tolist() == [0] * 10 + [2, 0, 0]
    assert census.masks.tolist() == [0, 0, 0, 2, 0]
    assert census.changes.tolist() == [2, 2, 2]
    assert census.labels.tolist() == [0, 2]
    assert census.pieces.tolist() == [0, 2, 4, 0, 4, 2, 2, 2, 2, 2, 0]
    assert all(np.array_equal(twice, 2 * once) for twice, once in zip(census + census, census))
    assert isinstance(census + census, Census)


def test_shows_the_records_asked_for(files):
    folder, vocab = files
    output = run_script(
        "inspect_tfrecord.py", f"{folder}/part-0", vocab, "--record=1", "--count=2"
    ).stdout
    size = len(frame(encode_example(EXAMPLE)))
    assert f"part-0: record 1 at byte {size}\nA: the {{[MASK]: cat}} ##s\n" in output
    assert f"part-0: record 2 at byte {2 * size}\n" in output and "record 0" not in output


def test_statistics_of_a_folder(files, tmp_path):
    folder, vocab = files
    output = run_script(
        "inspect_tfrecord.py", folder, vocab, f"--plot={tmp_path}/new/plot.png"
    ).stdout
    assert "5 records of 12 tokens and 4 predictions" in output
    assert "padding: 16.7% of the tokens, mean length 10.0" in output
    assert "33.3% [MASK], 33.3% another piece, 33.3% left as they were" in output
    assert "next sentence: 100.0% from another place" in output
    assert "most frequent pieces: 'the' 28.6%, 'cat' 14.3%" in output
    assert (tmp_path / "new/plot.png").read_bytes().startswith(b"\x89PNG")


def test_statistics_of_real_examples(tmp_path):
    create(
        UNICODE_TEXT,
        tmp_path / "part",
        "--max_seq_length=32",
        "--max_predictions_per_seq=5",
        "--dupe_factor=1",
    )
    with TFRecordFile(tmp_path / "part") as file:
        examples = [decode_example(file.payload(*extent), "") for extent in file.extents()]
    output = run_script("inspect_tfrecord.py", tmp_path / "part", "--stats").stdout
    padding = 1 - np.mean([example["input_mask"].mean() for example in examples])
    assert (
        f"{len(examples):,} records of 32 tokens and 5 predictions\npadding: {padding:.1%}"
        in output
    )
    assert "'[CLS]'" not in output


def test_wrong_flags_and_files(files, tmp_path):
    folder, vocab = files
    process = run_script(
        "inspect_tfrecord.py",
        folder,
        "--vocab_file=absent",
        "--record=-1",
        "--count=0",
        check=False,
    )
    assert_refused(
        process,
        "2 files; give one of them, or add --stats for statistics",
        "absent",
        "--record=-1",
        "--count=0",
    )
    assert_refused(
        run_script("inspect_tfrecord.py", tmp_path / "absent", check=False), "absent: no such file"
    )
    process = run_script(
        "inspect_tfrecord.py", f"{folder}/part-0", vocab, "--record=2", "--count=2", check=False
    )
    assert_refused(process, "3 records, 0 to 2; --record=2 --count=2 is past the end")
    process = run_script(
        "inspect_tfrecord.py", f"{folder}/part-0", vocab, f"--plot={folder}/part-0", check=False
    )
    assert_refused(process, "would overwrite an input")
    (tmp_path / "short.txt").write_text("\n".join(PIECES[:5]))
    process = run_script(
        "inspect_tfrecord.py",
        f"{folder}/part-0",
        f"--vocab_file={tmp_path}/short.txt",
        "--stats",
        check=False,
    )
    assert_refused(process, "part-0", "token id 6", "vocab_size 5")


def test_corrupt_data_is_reported(files):
    folder, vocab = files
    with open(folder / "part-1", "r+b") as file:
        file.seek(-20, 2)
        file.write(b"\xff")
    assert_refused(
        run_script("inspect_tfrecord.py", folder, vocab, "--stats", check=False),
        "part-1: record 1: ",
        "checksum",
    )
