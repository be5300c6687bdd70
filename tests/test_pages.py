"""README.md, CONTRIBUTING.md and docs/: every command is run or listed, what a page points at is
there, no line is too wide.
"""

import ast
import re
import shutil

import pages
import pytest
from conftest import ROOT
from pages import (
    EXCEPTIONS,
    PAGES,
    PYTHON_PAGES,
    WALK_PAGES,
    blocks,
    commands,
    exception,
    run_python,
)

SCRIPTS = sorted(
    path.relative_to(ROOT)
    for folder in (".", "cleanup_scripts", "benchmarks")
    for pattern in ("*.py", "*.sh")
    for path in (ROOT / folder).glob(pattern)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
A_COMMAND = re.compile(r"\s*(\$ |\./|(python3?|torchrun|pip|bash|source|sbatch|export) \S)")


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


# commands


def test_every_command_is_run_or_listed():
    """tests/test_full_walk.py runs all of WALK_PAGES that is not an exception."""
    neither = [
        f"{page}: {command}"
        for page in PAGES
        if page not in WALK_PAGES
        for command in commands(page)
        if not exception(command)
    ]
    assert neither == []


def test_every_exception_is_on_a_page():
    found = {exception(command) for page in PAGES for command in commands(page)}
    assert found - {None} == EXCEPTIONS.keys()
    assert all(EXCEPTIONS.values())


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are(page):
    """Output and pictures are `text`, in which nothing is meant to be typed."""
    for block in blocks(page):
        place = f"{page}:{block.line}"
        assert block.language in ("sh", "python", "text"), f"{place}: expected ```sh, python, text"
        if block.language == "text":
            typed = [line for line in block.text.splitlines() if A_COMMAND.match(line)]
            assert typed == [], f"{place}: a command in a block of output"


def test_python_is_run_by_a_test():
    assert {page for page in PAGES if pages.python_of(page)} == PYTHON_PAGES.keys()
    for reference in PYTHON_PAGES.values():
        path, name = reference.split("::")
        assert f"def {name}(" in (ROOT / path).read_text()


def test_commands_name_files_that_are_there():
    for page in PAGES:
        for command in commands(page):
            # but for what the commands write themselves
            pattern = r"(?<![\w/$.-])(?:\./|@)?([\w/-]+\.(?:py|sh|args))\b"
            for name in re.findall(pattern, command):
                is_hugging_faces = name.startswith("transformers/")  # `git clone` brings it
                assert is_hugging_faces or (ROOT / name).is_file(), (
                    f"{page}: {command}: {name} is not there"
                )


@pytest.fixture
def small_data(tfrecord_folder, tmp_path, monkeypatch):
    """Makes the working folder one with tfrecord/, eval/ and their indexes, of 70 and of 40
    examples of MLPerf's lengths.
    """
    for folder, split, sizes in (("tfrecord", "train", [40, 30]), ("eval", "eval", [40])):
        paths, index_paths = tfrecord_folder(sizes, seq_length=512, predictions=76)
        for destination, sources in ((folder, paths), (f"idx/{split}", index_paths)):
            (tmp_path / destination).mkdir(parents=True)
            for source in sources:
                shutil.move(source, tmp_path / destination)
    monkeypatch.chdir(tmp_path)


def test_python_of_the_loader(small_data):
    _, printed = run_python("README.md")
    assert printed == ["torch.Size([32, 512])"] * 2

    variables, _ = run_python("docs/loader.md")
    assert [len(batch["input_ids"]) for batch in variables["train"]] == [32]  # the second of two
    assert [len(batch["input_ids"]) for batch in variables["evaluation"]] == [32, 8]


def test_python_of_the_readme_is_short():
    assert len(pages.python_of("README.md").splitlines()) <= 10


# form


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_not_too_wide(page):
    for number, line in enumerate(text_of(page).splitlines(), start=1):
        limit = 120 if line.startswith("|") else 100
        assert len(line) <= limit, f"{page}:{number}: {len(line)} columns, expected {limit} at most"


@pytest.mark.parametrize("page", PAGES)
def test_no_path_of_this_machine(page):
    assert not re.search(r"\.\./shared|/work/|/home/", text_of(page))


# what pages point at


def anchors(page):
    """The names by which links reach the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose_of(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(linked.resolve().relative_to(ROOT)), f"{page}: {target}"


def test_every_page_is_linked_from_the_readme():
    linked = {target.partition("#")[0] for target in LINK.findall(prose_of("README.md"))}
    assert {page for page in PAGES if page != "README.md"} <= linked


@pytest.mark.parametrize("page", PAGES)
def test_files_and_tests_that_are_named_are_there(page):
    folders = ("bert", "tests", "configs", "benchmarks", "cleanup_scripts")
    sources = {path.name: path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    known = sources.keys() | {path.name for path in SCRIPTS}
    for name in re.findall(r"`([^`\n]+)`", prose_of(page)):
        if found := re.fullmatch(r"(?:[\w/]*/)?(test_\w+\.py)::(test_\w+)", name):
            file, function = found.groups()
            assert file in sources and f"def {function}(" in sources[file].read_text(), name
        elif re.fullmatch(rf"({'|'.join(folders)})/[\w./]*", name):
            assert (ROOT / name).exists(), f"{page}: {name}"
        elif re.fullmatch(r"\w+\.(py|sh)", name):
            assert name in known, f"{page}: {name}"


def flags_of(path):
    """The flags that a script adds: first arguments like "--name", and names of boolean flags."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Call):
            strings = [
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function in ("add", "add_argument") and strings and strings[0].startswith("--"):
                yield strings[0]
            elif function == "add_boolean_flag":
                yield f"--{strings[0]}"


DESCRIBED = [
    path for path in SCRIPTS if path.parts[0] != "benchmarks" and path.suffix == ".py"
]  # a benchmark has --help


@pytest.mark.parametrize("path", DESCRIBED, ids=str)
def test_every_flag_is_described(path):
    described = "\n".join(text_of(page) for page in PAGES if page.startswith("docs/"))
    missing = [flag for flag in flags_of(path) if not re.search(rf"{flag}\b", described)]
    assert missing == []


def test_scripts_have_flags():
    """The test above sees the flags at all."""
    assert {"--plugin", "--unpad"} <= set(flags_of("train.py"))
    assert "--max_seq_length" in set(flags_of("create_pretraining_data.py"))
