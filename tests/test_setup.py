"""setup.sh in a copy with an empty list of packages: a second call does nothing, what is stale or cut short is made anew."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "a project"
    folder.mkdir()
    shutil.copy(ROOT / "setup.sh", folder)
    need_gb(folder, 0)
    (folder / "requirements.txt").write_text("")
    (folder / "constraints.txt").write_text(next(line for line in open(ROOT / "constraints.txt") if line.startswith("pip==")))
    return folder


def need_gb(project, amount):
    script = project / "setup.sh"
    text, replaced = re.subn(r"^NEEDED_GB=\d+", f"NEEDED_GB={amount}", script.read_text(), flags=re.MULTILINE)
    assert replaced == 1
    script.write_text(text)


def set_up(project, **environment):
    python = os.path.realpath(sys.executable)
    return subprocess.run(
        ["./setup.sh"], cwd=project, capture_output=True, text=True, env=os.environ | {"PYTHON": python} | environment
    )


def test_set_up_and_repair(project):
    process = set_up(project)
    assert process.returncode == 0 and "source .venv/bin/activate" in process.stdout, process.stderr
    marker = project / ".venv" / "marker"

    def was_rebuilt():
        marker.touch()
        process = set_up(project)
        assert process.returncode == 0, process.stderr
        assert (process.stdout == "") == marker.exists()
        return not marker.exists()

    assert not was_rebuilt()
    (project / "requirements.txt").write_text("# changed\n")
    assert was_rebuilt()
    (project / ".venv" / "set-up-complete").unlink()  # as if cut short
    assert was_rebuilt()
    (project / ".venv" / "bin" / "python").unlink()
    assert was_rebuilt()
    assert not was_rebuilt()


def test_active_environment_and_no_python_on_the_path(project):
    assert set_up(project).returncode == 0
    active = {"PATH": f"{project}/.venv/bin:/usr/bin:/bin", "PYTHON": ""}
    assert set_up(project, **active).stdout == ""
    (project / "requirements.txt").write_text("# changed\n")
    process = set_up(project, **active)  # rebuilds the environment that it runs in
    assert process.returncode == 0 and (project / ".venv/set-up-complete").exists(), process.stderr
    (project / "no_python").mkdir()
    for tool in ("bash", "cat", "cut", "dirname", "env", "flock", "sha256sum"):
        (project / "no_python" / tool).symlink_to(shutil.which(tool))
    process = set_up(project, PATH=str(project / "no_python"), PYTHON="")
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_failed_installation_is_not_complete(project):
    (project / "requirements.txt").write_text("pip==0.0.0.nonsense\n")
    for _ in range(2):
        process = set_up(project)
        assert process.returncode != 0 and "nonsense" in process.stderr
        assert not (project / ".venv" / "set-up-complete").exists()


def test_full_disk_is_told_before_anything_is_removed(project):
    free_gb = int(subprocess.check_output(["df", "--output=avail", "-BG", project], text=True).split()[1].rstrip("G"))
    venv = project / ".venv"
    venv.mkdir()
    need_gb(project, free_gb + 10)
    process = set_up(project)
    assert process.returncode == 1 and f"{free_gb + 10} GB are needed" in process.stderr
    assert venv.exists()
    with open(venv / "large", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 3 << 30)
    need_gb(project, free_gb - 1)  # what the old environment holds counts: it goes first
    process = set_up(project)
    assert process.returncode == 0 and not (venv / "large").exists(), process.stderr


def test_python_that_does_not_fit_is_named(project, tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    process = set_up(project, PYTHON=str(old))
    assert process.returncode == 1
    assert "Python 3.11 is needed" in process.stderr and f"{old} is 3.9" in process.stderr
    assert os.listdir(project).count(".venv") == 0
