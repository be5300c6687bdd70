"""bert/common/kernels.py: an install that cannot be written to."""

import ctypes
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import create_pretraining_data
from bert.common import kernels

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h


def obey_permissions():
    """Takes from root, as which the suite may run, the right to write where no permission says so;
    it holds from exec on.
    """
    if os.getuid() == 0 and ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
        raise OSError("no capability can be dropped")


MODULE = """
from bert.common import kernels

@kernels.kernel
def add_to(values, number):
    for i in range(len(values)):
        values[i] += number
"""
# Uses it, and prints what is known about its cache before and after that.
PROGRAM = """
import numpy as np
from bert.common import kernels
from module import add_to

print(kernels.is_compiled(add_to))
values = np.arange(3)
add_to(values, 5)
print(values, sum(add_to.stats.cache_hits.values()))
"""


@pytest.fixture
def read_only_install(tmp_path):
    """A copy of bert/common/kernels.py with a program and an empty `home` beside it, neither
    writable, and a folder `open`, which is.
    """
    install = tmp_path / "install"
    (install / "bert/common").mkdir(parents=True)
    for name in ("bert/__init__.py", "bert/common/__init__.py", "bert/common/kernels.py"):
        shutil.copy(ROOT / name, install / name)
    (install / "module.py").write_text(MODULE)
    (install / "program.py").write_text(PROGRAM)
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
    options = {"cwd": read_only_install, "env": environment, "preexec_fn": obey_permissions}
    touch = subprocess.run(["touch", "bert/new"], capture_output=True, **options)
    assert touch.returncode, "the install is read-only indeed"
    first, second = (
        subprocess.run(
            [sys.executable, "program.py"], capture_output=True, text=True, check=True, **options
        )
        for _ in range(2)
    )
    assert (
        "note: " in first.stderr and f"{tmp_path}/open/bert-kernels-{os.getuid()}" in first.stderr
    )
    assert str(read_only_install) in first.stderr, "its own copy of kernels.py has run"
    assert first.stdout == "False\n[5 6 7] 0\n"
    assert second.stdout == "True\n[5 6 7] 1\n", "the compiled code is kept"


@pytest.mark.parametrize("is_compiled", [False, True])
def test_compilation_is_announced(monkeypatch, capsys, is_compiled):
    monkeypatch.setattr(kernels, "is_compiled", lambda function: is_compiled)
    create_pretraining_data.announce_compilation()
    assert ("compiling, once on this machine" in capsys.readouterr().err) is not is_compiled
