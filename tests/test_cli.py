"""What the commands share at their edge."""

import signal
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_in_a_finalizer_is_not_lost(number):
    """Python lets no exception out of a finalizer, not even Ctrl-C's."""
    program = f"""
import os, signal, time
from bert import cli

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), {number:d})
        time.sleep(0.1)

def main():
    Finalized()
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run(main)
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (process.returncode, process.stderr) == (128 + number, "")


def test_other_errors_in_finalizers_are_told():
    program = "from bert import cli; Lost = type('Lost', (), {'__del__': lambda self: 1 / 0}); cli.run(lambda: Lost() and None)"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert process.returncode == 0 and "ZeroDivisionError" in process.stderr
