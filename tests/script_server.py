"""Runs scripts of this project in processes of their own that find their imports done.

A script takes 0.1 to 3 s for its imports and for its kernels, and the tests run some hundred of
them. Here a server does that once; for each run it forks a process, which runs the script as
`python3 script` would: its own arguments, folder, environment, output and end.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class ScriptServer:
    """modules: what it imports. python_flags: of the interpreter, such as -S."""

    def __init__(self, *modules, python_flags=()):
        self._folder = tempfile.TemporaryDirectory(prefix="tests-scripts-")
        self._process = subprocess.Popen(
            [sys.executable, *python_flags, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._close)

    def run(self, script, *flags, cwd=ROOT, stderr=None, whole_end=False):
        """Returns the finished process, its output as text.

        stderr: a path instead, of a terminal for example. whole_end: for tests of how a process
        ends, the interpreter takes apart all modules at last, which takes 0.5 s.
        """
        outputs = [os.path.join(self._folder.name, name) for name in ("stdout", "stderr")]
        request = {
            "arguments": [str(script), *map(str, flags)],
            "folder": str(cwd),
            "environment": dict(os.environ),
            "outputs": [outputs[0], stderr or outputs[1]],
            "whole_end": whole_end,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        texts = [Path(path).read_text() for path in outputs[: 1 if stderr else 2]]
        return subprocess.CompletedProcess(request["arguments"], code, *texts)

    def run_code(self, code, *flags, **options):
        """The same with a program's text."""
        program = Path(self._folder.name, "program.py")
        program.write_text(code)
        return self.run(program, *flags, **options)

    def _close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


script_server = functools.cache(ScriptServer)


def serve(modules):
    """Forks for each request; returns the request in the forked process, None at the end."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.path[0] = str(ROOT)
    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    for line in requests:
        if (process := os.fork()) == 0:
            requests.close()
            replies.close()
            return json.loads(line)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(code, file=replies, flush=True)
    return None


def run(arguments, folder, environment, outputs, whole_end):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # to be chosen again
    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY)
        os.dup2(file, number)
        os.close(file)
    sys.argv = arguments
    sys.path[0] = os.path.dirname(arguments[0])
    if whole_end:
        gc.unfreeze()
        runpy.run_path(arguments[0], run_name="__main__")
        return
    code = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    request = serve(sys.argv[1:])
    if request:
        run(**request)
