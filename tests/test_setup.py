"""setup.sh in a copy with an empty list of packages: a second call does nothing, what is stale or
cut short is made again.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

PYTHON = os.path.realpath(sys.executable)
UV = re.search(r"^UV_VERSION=(\S+)", (ROOT / "setup.sh").read_text(), re.MULTILINE)[1]
NO_PYTHON = (
    "bash cat cut dirname df du env flock mkdir mv rm sh sha256sum tail tr uname chmod".split()
)


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "a project"
    (folder / "bert").mkdir(parents=True)
    for name in ("setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in (
        "bert/__init__.py",
        "tokenization.py",
        "bert_dali_dataloader.py",
        "LICENSE",
        "README.md",
        "requirements.txt",
    ):
        (folder / name).touch()
    need_gb(folder, 0)
    if (ROOT / ".venv.uv").exists():
        (folder / ".venv.uv").symlink_to(ROOT / ".venv.uv")
    return folder


def need_gb(project, amount):
    script = project / "setup.sh"
    text, replaced = re.subn(
        r"^NEEDED_GB=\d+", f"NEEDED_GB={amount}", script.read_text(), flags=re.MULTILINE
    )
    assert replaced == 1
    script.write_text(text)


def set_up(project, **environment):
    environment = os.environ | {"PYTHON": PYTHON} | environment
    return subprocess.run(
        ["./setup.sh"], cwd=project, capture_output=True, text=True, env=environment
    )


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_python(tmp_path):
    """A folder for the path that has what setup.sh needs, but no Python and no uv."""
    folder = tmp_path / "no_python"
    folder.mkdir()
    for tool in NO_PYTHON:
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


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
    assert (
        subprocess.run(
            [project / ".venv/bin/python", "-c", "import bert, tokenization"], cwd="/"
        ).returncode
        == 0
    )


def test_active_environment_and_no_python_on_the_path(project, no_python):
    assert set_up(project).returncode == 0
    active = {"PATH": f"{project}/.venv/bin:/usr/bin:/bin", "PYTHON": ""}
    assert set_up(project, **active).stdout == ""
    (project / "requirements.txt").write_text("# changed\n")
    process = set_up(project, **active)  # rebuilds the environment that it runs in
    assert process.returncode == 0 and (project / ".venv/set-up-complete").exists(), process.stderr
    process = set_up(project, PATH=str(no_python), PYTHON="")
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_failed_installation_is_not_complete(project):
    (project / "requirements.txt").write_text("pip==0.0.0.nonsense\n")
    for _ in range(2):
        process = set_up(project)
        assert process.returncode != 0 and "nonsense" in process.stderr
        assert not (project / ".venv" / "set-up-complete").exists()


def test_failed_rebuild_leaves_the_old_environment(project):
    assert set_up(project).returncode == 0
    (project / ".venv/marker").touch()
    (project / "requirements.txt").write_text("pip==0.0.0.nonsense\n")
    for _ in range(2):
        assert set_up(project).returncode != 0
        assert (project / ".venv/marker").exists() and not (project / ".venv.old").exists()
    (project / "requirements.txt").write_text("")
    process = set_up(project)
    assert (process.returncode, process.stdout) == (0, "")


def test_full_disk_is_reported_before_anything_is_removed(project):
    (project / ".venv").mkdir()
    need_gb(project, 1_000_000)
    process = set_up(project)
    assert process.returncode == 1 and "1000000 GB are needed" in process.stderr
    assert (project / ".venv").exists()


@pytest.mark.parametrize(
    "python, expected",
    [
        ("echo 3.9", "is Python 3.9; 3.11 or 3.12 is needed"),
        ("echo 3.13", "lacks on Python 3.13"),
        ("exit 127", "does not run as a Python"),
        (None, "there is no such program"),
    ],
)
def test_python_that_does_not_fit_is_refused(project, tmp_path, python, expected):
    path = tmp_path / "bin/python3"
    if python:
        program(
            path,
            f'case "$2" in "") {"exit 0" if "echo" in python else python};; *) {python};; esac',
        )
    process = set_up(project, PYTHON=str(path))
    assert process.returncode == 1
    assert f"PYTHON={path}" in process.stderr and expected in process.stderr
    assert not (project / ".venv").exists()


def test_first_python_that_fits_is_taken(project, tmp_path):
    program(tmp_path / "bin/python3.12", "exit 127")  # as pyenv's, when this version is not chosen
    program(tmp_path / "bin/python3.11", "echo 3.10")
    (tmp_path / "bin/python3").symlink_to(PYTHON)
    process = set_up(project, PYTHON="", PATH=f"{tmp_path}/bin:/usr/bin:/bin")
    assert process.returncode == 0, process.stderr
    assert os.path.realpath(project / ".venv/bin/python") == PYTHON


@pytest.mark.parametrize("has_network", [True, False])
def test_uv_fetches_itself_and_a_python_where_there_is_none(
    project, no_python, tmp_path, has_network
):
    """The network is a stand-in: `curl` prints an installer that leaves a `uv` which notes what it
    was asked for.
    """
    uv = program(
        tmp_path / "stand-ins/uv",
        f'[ "$1" != --version ] || echo "uv {UV}"; echo "$*" >> {tmp_path}/asked; [ "$1" != venv ]',
    )
    installer = f'mkdir -p "$UV_UNMANAGED_INSTALL"; ln -s {uv} "$UV_UNMANAGED_INSTALL/uv"'
    curl = f"echo \"$*\" >> {tmp_path}/fetched; echo '{installer}'"
    (project / ".venv.uv").unlink(missing_ok=True)
    program(no_python / "curl", curl if has_network else "exit 6")
    (no_python / "ln").symlink_to(shutil.which("ln"))
    process = set_up(project, PATH=str(no_python), PYTHON="")
    assert process.returncode == 1 and "no Python 3.11 or 3.12 here (none at all)" in process.stderr
    if has_network:
        assert f"https://astral.sh/uv/{UV}/install.sh" in (tmp_path / "fetched").read_text()
        assert "venv --quiet --python 3.12 .venv" in (tmp_path / "asked").read_text()
        assert "could be fetched. Install one" in process.stderr
    else:
        assert f"uv {UV}" in process.stderr and "apt install" in process.stderr


def test_uv_is_installed_by_pip(project):
    (project / ".venv.uv").unlink(missing_ok=True)
    process = set_up(project, PATH="/usr/bin:/bin")
    assert process.returncode == 0, process.stderr
    assert (project / ".venv.uv/bin/uv").exists()
    assert subprocess.check_output(
        [project / ".venv.uv/bin/uv", "--version"], text=True
    ).startswith(f"uv {UV}")
