"""bert/progress.py: a line on a terminal, nothing elsewhere."""

import os
import pty
import subprocess
import sys

import pytest
from conftest import ROOT, UNICODE_TEXT, create

from bert.progress import time_left


@pytest.mark.parametrize(
    "done, total, seconds, expected",
    [(1, 3, 2.0, "4 s left"), (1, 2, 61, "1 min 01 s left"), (1, 2, 7322, "2 h 02 min left"), (5, 5, 9, "0 s left")],
)
def test_time_left(done, total, seconds, expected):
    assert time_left(done, total, seconds) == expected


def test_stages_on_a_terminal_are_wiped(tmp_path):
    parent, child = pty.openpty()
    command = [sys.executable, "create_pretraining_data.py", f"--input_file={UNICODE_TEXT}", f"--output_file={tmp_path}/out",
               f"--vocab_file={ROOT}/vocab.txt"]  # fmt: skip
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=child, text=True, check=True)
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    stages = [text.removesuffix("\x1b[K") for text in shown.split("\r")]
    for stage in ("reading ", "tokenising ", "making instances", "writing 1,076 of 1,076 records, "):
        assert any(text.startswith(stage) for text in stages), shown
    assert "\n" not in shown and shown.endswith("\r\x1b[K") and all(len(text) < 80 for text in stages)
    assert process.stdout.count("\n") == 1


def test_nothing_elsewhere(tmp_path):
    assert create(UNICODE_TEXT, tmp_path / "out").stderr == ""
