"""The pages that people read, and the code blocks in them: which commands a test runs, and which
none does, and why.
"""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "bert/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]

# tests/test_full_walk.py runs the shell commands of these pages, in this order, but for the
# exceptions below.
WALK_PAGES = ["docs/data.md", "docs/verify.md", "README.md", "docs/training.md"]

# {command on a page, or its beginning: why tests/test_full_walk.py does not run it}
EXCEPTIONS = {
    "./quickstart.sh": "tests/test_quickstart.py runs it",
    "./run_tests.sh": "it runs the tests",
    "./setup.sh && source": "the packages are here already; tests/test_setup.py runs setup.sh",
    "pre-commit install": "it changes the checkout's git hooks",
    "ruff check --fix": "it changes files; tests/test_code_style.py runs all three without --fix",
    ".venv.uv/bin/uv pip compile": "it asks the package index; test_packaging.py compares",
    "cat > make_part.sbatch": "for Slurm, which is not here",
    "sbatch ": "for the same reason",
    "torchrun --nnodes=4": "it needs four machines",
    "tensorboard ": "a server that does not end; test_tensorboard_log.py reads the log",
    "python3 cleanup_scripts/download.py --wiki=enwiki --date=20200101": "from archive.org",
    "WIKIEXTRACTOR=": "it needs a download; test_extract_dump.py runs it with a stand-in",
    "python3 fill_mask.py": "tests/training/test_hidden_words.py runs it",
    "python3 benchmarks/finetune.py": "test_use_the_model.py runs it, shorter",
    "python3 -m venv loggers": "packages that are not installed here; they were tried by hand",
    "loggers/bin/": "for the same reason",
    "git clone": "from GitHub, for the commands that follow",
    "python3 -m venv glue": "for the same reason",
    "glue/bin/": "it needs the internet",
    "dump=": "for the benchmark that follows",
    "python3 benchmarks/": "benchmarks take minutes",
    "TMPDIR=/dev/shm python3 benchmarks/": "for the same reason",
}

# {page: the test that runs its Python}
PYTHON_PAGES = {
    "README.md": "tests/test_pages.py::test_python_of_the_loader",
    "docs/loader.md": "tests/test_pages.py::test_python_of_the_loader",
    "docs/use-the-model.md": "tests/training/test_use_the_model.py::test_python_of_the_page",
    "docs/training.md": "tests/test_full_walk.py::test_the_walk",
}


class Block(NamedTuple):
    """A fenced block. language: "sh" for commands, "python", "text" for output and pictures."""

    page: str
    line: int  # of its first line of text, from 1
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yields the fenced blocks of a page, a path from the project's root."""
    language, first, lines = None, 0, []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        if language is None and line.startswith("```"):
            language, first, lines = line[3:], number + 1, []
        elif language is not None and line == "```":
            yield Block(page, first, language, "\n".join(lines))
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{page}:{first}: this block has no end"


def python_of(page: str) -> str:
    """The Python of a page, its blocks one after the other."""
    return "\n".join(block.text for block in blocks(page) if block.language == "python")


def run_python(page: str) -> tuple[dict, list[str]]:
    """Runs the Python of a page; returns its variables and what it printed, as lines."""
    printed, variables = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(python_of(page), page, "exec"), variables)
    return variables, printed.getvalue().splitlines()


def commands(page: str) -> list[str]:
    """The shell commands of a page."""
    return [
        command
        for block in blocks(page)
        if block.language == "sh"
        for command in commands_of(block.text)
    ]


def commands_of(text: str) -> list[str]:
    """The commands of a block, without comments, each on one line; a here-document belongs to its
    command.
    """
    lines, found = iter(text.splitlines()), []
    for line in lines:
        line = without_comment(line)
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + without_comment(next(lines)).strip()
        if "<< 'END'" in line:
            for more in lines:
                line += f"\n{more}"
                if more == "END":
                    break
        if line.strip():
            found.append(line)
    return found


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s+)#\s.*", "", line)


def exception(command: str) -> str | None:
    """The beginning in EXCEPTIONS that fits a command."""
    return next((beginning for beginning in EXCEPTIONS if command.startswith(beginning)), None)


def expanded(commands: list[str]) -> list[list[str]]:
    """The commands as lists of words, with the values of the variables that they set themselves, as
    text=... does.
    """
    values, found = {}, []
    for command in commands:
        if assignment := re.fullmatch(r'(\w+)="?([^"]*)"?\s*', command):
            values[assignment[1]] = " ".join(assignment[2].split())
        command = re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), command)
        found.append(shlex.split(command) if "\n" not in command else [command])
    return found


def walk_commands() -> list[str]:
    """The commands that tests/test_full_walk.py runs, in order; one that stands on several pages
    once.
    """
    found = [command for page in WALK_PAGES for command in commands(page)]
    seen, kept = [], []
    for command, words in zip(found, expanded(found), strict=True):
        if words not in seen and not exception(command):
            kept.append(command)
        seen.append(words)
    return kept
