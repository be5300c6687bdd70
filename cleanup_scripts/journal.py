"""What a cleanup step has finished, so that a second call does only the rest. Imported by
cleanup_io.py, never run.

The journal of a step, `.<step>.journal` in the folder that --data begins with (of do_gather.py: in
--out_dir), has a line for each finished task: its output, a fingerprint and the result. An output
counts as done if its fingerprint is still the same: the code and settings of the step, and name,
size and modification time of its inputs and outputs. An output that was copied without its
times, changed by hand or made by another version is made again; an incomplete last line, of a call
that was killed, is ignored.
"""

import hashlib
import json
import os
import re
import sys


def fixed_folder(pattern):
    """The folder that a glob pattern begins with: 'extracted/*/wiki_*' -> 'extracted'."""
    return os.path.dirname(re.split(r"[*?\[]", os.path.expanduser(pattern))[0]) or "."


def code_digest():
    """A digest of all loaded modules of this folder and of `bert`, and of the version of NLTK.

    Neither `bert` nor NLTK is imported for it: download.py runs without them.
    """
    files = [__file__, *([sys.modules["bert"].__file__] if "bert" in sys.modules else [])]
    own = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in files)
    digest = hashlib.sha256()
    paths = {
        os.path.abspath(getattr(module, "__file__", None) or "")
        for module in list(sys.modules.values())
    }
    for path in sorted(path for path in paths if path.startswith(own)):
        with open(path, "rb") as file:
            digest.update(file.read())
    if "nltk" in sys.modules:
        digest.update(sys.modules["nltk"].__version__.encode())
    return digest.hexdigest()


class Journal:
    """Finished tasks of one step.

    A task is a tuple; files_of(task) gives its (input paths, output paths).
    """

    def __init__(self, step, folder, files_of, restart=False):
        self._folder = folder
        self._path = os.path.join(self._folder, f".{step}.journal")
        self._files_of = files_of
        self._code = code_digest()
        self._lines = {} if restart else self._read()
        self._inputs = {}  # {task: state of its inputs}, noted before they are read
        self.num_done_before = 0

    def _read(self):
        lines = {}
        try:
            with open(self._path, encoding="utf-8") as file:
                for line in file:
                    try:
                        output, fingerprint, result = json.loads(line)
                    except ValueError:  # half a line
                        continue
                    lines[output] = fingerprint, result
        except FileNotFoundError:
            pass
        return lines

    def result_of(self, task):
        """The result of a task that is done, None for one that is to be done (again)."""
        inputs, outputs = self._files_of(task)
        self._inputs[task] = self._states(inputs)
        fingerprint, result = self._lines.get(self._name(outputs[0]), (None, None))
        if fingerprint is None or fingerprint != self._fingerprint(task, outputs):
            return None
        self.num_done_before += 1
        return result

    def add(self, task, result):
        """Notes a task that has just been done."""
        _, outputs = self._files_of(task)
        line = json.dumps([self._name(outputs[0]), self._fingerprint(task, outputs), result])
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("\n" + line + "\n" if self._ends_in_half_a_line(file) else line + "\n")

    def _ends_in_half_a_line(self, file):
        if file.tell() == 0:
            return False
        with open(self._path, "rb") as written:
            written.seek(-1, os.SEEK_END)
            return written.read() != b"\n"

    def remove_outputs(self, task):
        """Removes what an earlier call made of an input that is broken now: the next step would
        take it for current.
        """
        for path in self._files_of(task)[1]:
            if os.path.exists(path):
                os.remove(path)

    def _fingerprint(self, task, outputs):
        settings = [item for item in task if isinstance(item, int | float)]
        state = [self._code, settings, self._inputs[task], self._states(outputs)]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()

    def _states(self, paths):
        """[name, bytes, modification time in ns] of files; None for one that does not exist."""
        states = []
        for path in paths:
            try:
                status = os.stat(path)
                states.append([self._name(path), status.st_size, status.st_mtime_ns])
            except FileNotFoundError:
                states.append(None)
        return states

    def _name(self, path):
        return os.path.relpath(path, self._folder)
