"""What ruff and mypy find, and that public functions have type hints.

`ruff check --fix` and `ruff format` fix nearly all that ruff finds.
"""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

TYPED = [
    str(path.relative_to(ROOT))
    for pattern in ("*.py", "benchmarks/*.py", "bert/**/*.py", "cleanup_scripts/*.py")
    for path in sorted(ROOT.glob(pattern))
]


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check", "--diff"], ["mypy", "--no-error-summary"]],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_nothing_is_found(command):
    process = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT
    )
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize("path", TYPED)
def test_public_functions_have_type_hints(path):
    lacking = list(without_hints(ast.parse((ROOT / path).read_text()).body))
    assert not lacking, "\n".join(f"{path}:{line}: {what}" for line, what in lacking)


def without_hints(body, of_class=""):
    """Yields (line, what has no type hint) of the public functions and methods in a body; nested
    functions and dunder methods but __init__ are exempt.
    """
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from without_hints(node.body, f"{of_class}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_") and node.name != "__init__":
                continue
            name, arguments = of_class + node.name, node.args
            positional = arguments.posonlyargs + arguments.args
            if of_class and "staticmethod" not in map(ast.unparse, node.decorator_list):
                positional = positional[1:]  # self or cls
            others = [*arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            for argument in filter(None, positional + others):
                if argument.annotation is None:
                    yield node.lineno, f"{name}: {argument.arg}"
            if node.returns is None and node.name != "__init__":
                yield node.lineno, f"{name}: result"
        elif isinstance(node, ast.If | ast.Try):
            yield from without_hints(node.body, of_class)


def test_what_has_no_type_hints_is_found():
    source = """
def bare(a, *b, c, **d): ...
def whole(a: int, *b: int, c: int, **d: int) -> None: ...
def _private(a): ...
class Public:
    def __init__(self, a): ...
    def __len__(self): ...
    @staticmethod
    def of_none(a) -> None: ...
    def method(self, a: int): ...
class _Private:
    def method(self, a): ...
"""
    assert [what for _, what in without_hints(ast.parse(source).body)] == [
        "bare: a", "bare: c", "bare: b", "bare: d", "bare: result",
        "Public.__init__: a", "Public.of_none: a", "Public.method: result",
    ]  # fmt: skip
