"""bert/common/kernels.py: an install that cannot be written to."""

import ctypes
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, UNICODE_TEXT, create

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h


def obey_permissions():
    """Takes from root, as which the suite may run, the right to write where no permission says so;
    it holds from exec on.
    """
    if os.getuid() == 0 and ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
        raise OSError("no capability can be dropped")


@pytest.fixture
def read_only_install(tmp_path):
    """A copy of the commands and an empty `home` beside it, neither writable, and a folder `open`,
    which is.
    """
    install = tmp_path / "install"
    shutil.copytree(ROOT / "bert", install / "bert", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("create_pretraining_data.py", "tokenization.py", "vocab.txt"):
        shutil.copy(ROOT / name, install)
    shutil.copy(UNICODE_TEXT, install / "text")
    (tmp_path / "home").mkdir()
    (tmp_path / "open").mkdir()
    read_only = [path for top in (install, tmp_path / "home") for path, _, _ in os.walk(top)]
    for path in read_only:
        os.chmod(path, 0o555)
    yield install
    for path in read_only:
        os.chmod(path, 0o755)


def test_read_only_install_without_a_home(read_only_install, tmp_path):
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": f"{tmp_path}/home",
        "TMPDIR": f"{tmp_path}/open",
    }
    command = [sys.executable, "create_pretraining_data.py", "--input_file=text",
               f"--output_file={tmp_path}/open/out", "--vocab_file=vocab.txt",
               "--dupe_factor=2"]  # fmt: skip
    options = {"cwd": read_only_install, "env": environment, "preexec_fn": obey_permissions}
    touch = subprocess.run(["touch", "bert/new"], capture_output=True, **options)
    assert touch.returncode, "the install is read-only indeed"
    first, second = (
        subprocess.run(command, capture_output=True, text=True, **options) for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, first.stderr
    assert (
        "note: " in first.stderr and f"{tmp_path}/open/bert-kernels-{os.getuid()}" in first.stderr
    )
    assert "compiling" in first.stderr and "compiling" not in second.stderr, (
        "the compiled code is kept"
    )
    create(UNICODE_TEXT, tmp_path / "expected", "--dupe_factor=2")
    assert (tmp_path / "open/out").read_bytes() == (tmp_path / "expected").read_bytes()
