"""The rooms of bert/: which may import which, and that bert/README.md lists every module."""

import ast
import re

import pytest
from conftest import ROOT

MAY_IMPORT = {  # beside common/, examples/ and itself
    "common": set(),
    "examples": set(),
    "generation": {"tokenization"},
    "loader": set(),
    "verification": set(),
    "training": {"bert_dali_dataloader"},
}
PUBLIC_MODULES = {
    "tokenization": {"common"},
    "bert_dali_dataloader": {"common", "examples", "loader"},
}
OWN_MODULES = {path.stem for path in [*ROOT.glob("*.py"), *(ROOT / "cleanup_scripts").glob("*.py")]}
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.glob("bert/*/*.py"))


def rooms_and_scripts_imported(path):
    """What a file imports of this project: names of rooms, of scripts and of public modules."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "bert"} | {
        part[0] for part in parts if part[0] in OWN_MODULES
    }


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_room_imports_only_what_it_may(path):
    room = path.parts[1]
    allowed = {"common", room} | ({"examples"} if room != "common" else set()) | MAY_IMPORT[room]
    assert rooms_and_scripts_imported(path) <= allowed


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_a_public_module_imports_only_what_it_may(name):
    assert rooms_and_scripts_imported(f"{name}.py") <= PUBLIC_MODULES[name]


def test_every_module_is_in_a_room_and_listed():
    assert {path.parts[1] for path in MODULES} == MAY_IMPORT.keys()
    assert [path.name for path in ROOT.glob("bert/*.py")] == ["__init__.py"]
    listed, room = [], None
    for line in (ROOT / "bert/README.md").read_text().splitlines():
        if heading := re.fullmatch(r"## (\w+)/", line):
            room = heading[1]
        elif room and line.startswith("| `"):
            listed += [
                f"bert/{room}/{name}.py" for name in re.findall(r"`(\w+)`", line.split("|")[1])
            ]
    assert sorted(listed) == [str(path) for path in MODULES if path.name != "__init__.py"]
