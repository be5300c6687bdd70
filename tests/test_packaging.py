"""The environment that setup.sh makes: what it offers from every folder, and that its lock is
whole.
"""

import re
import subprocess
import sys
import tomllib

from conftest import ROOT


def test_public_modules_are_importable_from_every_folder(tmp_path):
    """And that of the loader says nothing and takes no TensorFlow."""
    code = (
        "import sys, bert, tokenization; from bert_dali_dataloader import DaliDataloader; "
        "print('tensorflow' in sys.modules); print(bert.__file__)"
    )
    process = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines() == ["False", str(ROOT / "bert/__init__.py")]


def names(path):
    """{name of a package: line} of a requirements file."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return {
        re.split(r"[=<>;\s\[]", line)[0].lower().replace("_", "-"): line for line in lines if line
    }


def test_lock_has_every_direct_dependency_at_its_version():
    direct, locked = names(ROOT / "requirements.txt"), names(ROOT / "constraints.txt")
    assert all("==" in line for line in [*direct.values(), *locked.values()])
    for name, line in direct.items():
        version = line.lower().rpartition("==")[2]  # behind a name like moto[s3]
        assert locked[name].split(";")[0].strip().endswith(f"=={version}"), name


def test_build_backend_is_the_locked_one():
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert requires == [names(ROOT / "constraints.txt")["setuptools"]]
