"""bert/common/progress.py: a line on a terminal, nothing elsewhere."""

import os
import pty
import re

import pytest
from conftest import ROOT, UNICODE_TEXT, create, run_script

from bert.common import progress
from bert.common.progress import ByteProgress, fitted, time_left


@pytest.mark.parametrize(
    "done, total, seconds, expected",
    [
        (1, 3, 2.0, "4 s left"),
        (1, 2, 61, "1 min 01 s left"),
        (1, 2, 7322, "2 h 02 min left"),
        (5, 5, 9, "0 s left"),
    ],
)
def test_time_left(done, total, seconds, expected):
    assert time_left(done, total, seconds) == expected


def test_a_narrow_line_keeps_what_matters():
    parts = [(0, "step 1/9"), (3, "lr 1"), (1, "loss 2.5"), (2, "3 s left")]
    whole = "step 1/9 | lr 1 | loss 2.5 | 3 s left"
    assert [fitted(parts, columns) for columns in (len(whole), len(whole) - 1, 29, 18, 5)] == [
        whole, "step 1/9 | loss 2.5 | 3 s left"[:30], "step 1/9 | loss 2.5", "step 1/9", "step ",
    ]  # fmt: skip


def test_bytes_twice_a_second(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    seconds = iter([0.0, 0.1, 1.0, 1.2, 3.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with ByteProgress("a.bz2", total=10_000_000, start=1_000_000) as line:
        for done in (1_500_000, 4_000_000, 4_500_000, 7_000_000):
            line.show_bytes(done)
    assert capsys.readouterr().err.replace("\x1b[K", "").split("\r") == [
        "",
        "a.bz2 4.0 of 10.0 MB, 3.0 MB/s, 2 s left",
        "a.bz2 7.0 of 10.0 MB, 2.0 MB/s, 2 s left",
        "",
    ]


def test_bytes_of_a_file_of_unknown_size(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    seconds = iter([0.0, 2.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    ByteProgress("a.bz2", total=None).show_bytes(4_000_000)
    assert capsys.readouterr().err == "\ra.bz2 4.0 MB, 2.0 MB/s\x1b[K"


def run_on_a_terminal(*command):
    """Runs a script at the root with a terminal as stderr; returns (stdout, the texts that its line
    showed).
    """
    parent, child = pty.openpty()
    process = run_script(*command, stderr=os.ttyname(child))
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert "\n" not in shown and shown.endswith("\r\x1b[K"), shown
    return process.stdout, [text.removesuffix("\x1b[K") for text in shown.split("\r")]


def test_stages_on_a_terminal_are_wiped(tmp_path):
    stdout, stages = run_on_a_terminal(
        "create_pretraining_data.py", f"--input_file={UNICODE_TEXT}",
        f"--output_file={tmp_path}/out", f"--vocab_file={ROOT}/vocab.txt"
    )  # fmt: skip
    for stage in (
        "reading ",
        "tokenising ",
        "making instances",
        "writing 1,076 of 1,076 records, ",
    ):
        assert any(text.startswith(stage) for text in stages), stages
    assert all(len(text) < 80 for text in stages)
    assert stdout.count("\n") == 1


def test_commands_that_read_many_files_show_progress(tmp_path):
    for seed in (1, 2):
        create(
            UNICODE_TEXT,
            tmp_path / "tfrecord" / str(seed),
            "--dupe_factor=1",
            f"--random_seed={seed}",
        )
    _, shown = run_on_a_terminal(
        "make_idx.py", f"--tfrecord_train={tmp_path}/tfrecord", f"--output_idx={tmp_path}/idx"
    )
    assert any(
        re.fullmatch(r"1 of 2 files, [\d,]+ records/s, \d+ s left", text) for text in shown
    ), shown
    _, shown = run_on_a_terminal("inspect_tfrecord.py", f"{tmp_path}/tfrecord", "--stats")
    assert any(
        re.fullmatch(r"1 of 2 files, [\d,]+ records/s, \d+ s left", text) for text in shown
    ), shown
    lengths = ("--max_seq_length=128", "--max_predictions_per_seq=20")
    _, shown = run_on_a_terminal(
        "verify_dataset.py", f"--tfrecord={tmp_path}/tfrecord", "--own_data", *lengths
    )
    assert any(re.fullmatch(r"\d+ of \d+ MB, [\d,]+ MB/s, \d+ s left", text) for text in shown), (
        shown
    )


def test_nothing_elsewhere(tmp_path):
    assert create(UNICODE_TEXT, tmp_path / "out").stderr == ""
