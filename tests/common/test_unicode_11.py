"""Unicode 11 on every Python: digests recorded from Python 3.7, MLPerf's."""

import glob
import os
import platform
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from bert.common.unicode_11 import RECLASSIFIED_LETTERS, Unicode11
from bert.common.unicode_11_table import UNASSIGNED
from tests.reference import sentences_around_characters

# Both lines of tests/reference/character_classes.py with Python 3.7.16.
TOKENIZER_CLASSES = "93dced89860d4edee6938f408b2a72a2712b89940c34be450cdaece1ab8da852"
SPLITTER_CLASSES = "07f267b29ccdb70ea664ee7773e43033ae2691ed056d2048edbe208b36c288ce"
# tests/reference/sentences_around_characters.py with Python 3.7.16 and NLTK 3.4.5.
SENTENCES = "4d0528810717653bcc6a97fe0cad509f7789de72c711e5ee2281877345bbae19"


def pythons():
    """{version: path} of the Pythons on this machine, this one among them: from the path, and
    pyenv's, whose folders have their versions as names.
    """
    found = {platform.python_version(): sys.executable}
    for path in glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python")):
        found.setdefault(path.split("/")[-3], path)
    for path in filter(None, (shutil.which(f"python3.{minor}") for minor in range(7, 16))):
        if "/.pyenv/" not in path:
            command = [path, "-SE", "-c", "import platform; print(platform.python_version())"]
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode == 0:
                found.setdefault(process.stdout.strip(), path)
    return found


PYTHONS = pythons()


def output_of(python, script):
    return subprocess.run(
        [python, ROOT / "tests/reference" / script], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(version, marks=() if path == sys.executable else pytest.mark.slow)
        for version, path in PYTHONS.items()
        if not version.startswith(("3.6.", "3.8."))
    ],
)
def test_every_character_is_classified_as_by_python_3_7(version):
    assert output_of(PYTHONS[version], "character_classes.py").split() == [
        TOKENIZER_CLASSES,
        SPLITTER_CLASSES,
    ]


def test_sentences_are_those_of_nltk_3_4_5_on_python_3_7(capsys):
    sentences_around_characters.main()
    assert capsys.readouterr().out.strip() == SENTENCES


def test_table_is_python_3_7s():
    python = next((path for version, path in PYTHONS.items() if version.startswith("3.7.")), None)
    if python is None:
        pytest.skip("needs a Python 3.7")
    assert (
        output_of(python, "unicode_11_table.py")
        == (ROOT / "bert/common/unicode_11_table.py").read_text()
    )


def test_replacement_is_one_for_one():
    as_unicode_11 = Unicode11(RECLASSIFIED_LETTERS, kept_ranges=[(0x9FF0, 0x9FFF)])
    text = "a\u1b4e\u9ff0\u2e52é\ud800\u1cf2\U0001fae8 \u0378\U0010fffe"
    assert as_unicode_11(text) == "a\ue000\u9ff0\ue000é\ud800\u1ce1\ue000 \ue000\ue000"
    ordinary = "Ångström – 北京"
    assert as_unicode_11(ordinary) is ordinary


def test_table_is_ascending():
    assert all(first <= last for first, last in UNASSIGNED)
    assert all(last + 1 < first for (_, last), (first, _) in zip(UNASSIGNED, UNASSIGNED[1:]))
