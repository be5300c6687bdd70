"""What ruff finds: `ruff check --fix` and `ruff format` mend nearly all of it."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    "command", [["check"], ["format", "--check", "--diff"]], ids=["check", "format"]
)
def test_ruff_finds_nothing(command):
    process = subprocess.run(
        [sys.executable, "-m", "ruff", *command, ROOT], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
