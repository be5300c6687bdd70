"""What a cleanup step has finished, so that a second call does only the rest. Imported by
cleanup_io.py, never run.

The journal of a step, `.<step>.journal` in the folder that --data begins with (of do_gather.py: in
--out_dir), has a line for each finished task: its output, a fingerprint and the result. An output
counts as done if its fingerprint is still the same: the code and settings of the step, and name,
size and modification time of its inputs and outputs. An output that was copied without its
times, changed by hand or made by another version is made again; an incomplete last line, of a call
that was killed, is ignored.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from bert.common import files


def fixed_folder(pattern: str) -> str:
    """The folder that a glob pattern begins with: 'extracted/*/wiki_*' -> 'extracted'."""
    return os.path.dirname(re.split(r"[*?\[]", os.path.expanduser(pattern))[0]) or "."


def code_digest() -> str:
    """A digest of the loaded code that decides on the output, and of the version of NLTK."""
    here = os.path.dirname(os.path.abspath(__file__))
    paths = set()
    for name, module in list(sys.modules.items()):
        path = os.path.abspath(getattr(module, "__file__", None) or "")
        if os.path.dirname(path) == here or name.startswith("bert.common.unicode_11"):
            paths.add(path)
    digest = hashlib.sha256()
    for path in sorted(paths):
        with open(path, "rb") as file:
            digest.update(file.read())
    if "nltk" in sys.modules:
        digest.update(sys.modules["nltk"].__version__.encode())
    return digest.hexdigest()


class Journal:
    """Finished tasks of one step.

    A task is a tuple; files_of(task) gives its (input paths, output paths).
    """

    def __init__(
        self,
        step: str,
        folder: str,
        files_of: Callable[[tuple], tuple[list[str], list[str]]],
        restart: bool = False,
    ) -> None:
        self.started = time.monotonic()
        self._folder, self._path = folder, os.path.join(folder, f".{step}.journal")
        self._files_of = files_of
        self._code = code_digest()
        self._lines = {} if restart else self._read()
        self._inputs: dict[tuple, list] = {}  # the states of a task's inputs before they are read
        self.num_done_before = 0

    def _read(self):
        lines = {}
        with contextlib.suppress(FileNotFoundError), open(self._path, encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError):  # an incomplete or empty line
                    output, fingerprint, result = json.loads(line)
                    lines[output] = fingerprint, result
        return lines

    def result_of(self, task: tuple) -> Any:
        """The result of a task that is done, None for one that is to be done (again)."""
        inputs, outputs = self._files_of(task)
        self._inputs[task] = self._states(inputs)
        fingerprint, result = self._lines.get(self._name(outputs[0]), (None, None))
        if fingerprint is None or fingerprint != self._fingerprint(task, outputs):
            return None
        self.num_done_before += 1
        return result

    def add(self, task: tuple, result: Any) -> None:
        """Writes down a task that has just been done."""
        _, outputs = self._files_of(task)
        line = json.dumps([self._name(outputs[0]), self._fingerprint(task, outputs), result])
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("\n" + line)  # first a new line: the last one may be incomplete

    def remove_outputs(self, task: tuple) -> None:
        """Removes an earlier call's outputs of a failed task: the next step must not read them."""
        for path in self._files_of(task)[1]:
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                files.remove(path)

    def _fingerprint(self, task, outputs):
        settings = [item for item in task if isinstance(item, int | float)]
        state = [self._code, settings, self._inputs[task], self._states(outputs)]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()

    def _states(self, paths):
        """[name, bytes, modification time in ns] of files; None for one that does not exist."""
        states: list[list | None] = []
        for path in paths:
            try:
                status = os.stat(path)
                states.append([self._name(path), status.st_size, status.st_mtime_ns])
            except FileNotFoundError:
                states.append(None)
        return states

    def _name(self, path):
        return os.path.relpath(path, self._folder)
