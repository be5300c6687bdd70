"""Runs scripts of this project in processes of their own that find their imports done.

A script takes 0.1 to 9 s of CPU for its imports and its kernels, and the tests run some hundred of
them. Here a server does that once; for each run it forks a process, which runs the script as
`python3 script` would: its own arguments, folder, environment, output and end.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen

PATIENCE = 1800.0  # seconds; a machine may be busy
ROOT = Path(__file__).resolve().parent.parent


class ScriptServer:
    """modules: what it imports. python_flags: of the interpreter, such as -S. python_path: a folder
    to look for modules in first.
    """

    def __init__(self, *modules, python_flags=(), python_path=None):
        command = [sys.executable, *python_flags, __file__, *modules]
        environment = os.environ | ({"PYTHONPATH": python_path} if python_path else {})
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environment)
        atexit.register(self._process.communicate)  # which closes its stdin, and waits for it

    def start(self, script, *flags, **options):
        """options: of ScriptProcess."""
        return ScriptProcess(self, [str(script), *map(str, flags)], **options)

    def run(self, script, *flags, **options):
        return self.start(script, *flags, **options).finished()

    def run_code(self, code, *flags, **options):
        """The same with a program's text."""
        with tempfile.TemporaryDirectory(prefix="tests-program-") as folder:
            program = Path(folder, "program.py")
            program.write_text(code)
            return self.run(program, *flags, **options)

    def ask(self, **question):
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


script_server = functools.cache(ScriptServer)


class ScriptProcess:
    """A script at work, until the tests end. It has what tests use of a Popen with text in pipes.

    environment: in place of this process's. stderr: the path of a terminal instead.
    options: file_size_limit, in bytes; own_session, as from a terminal: Ctrl-C interrupts it;
    whole_end, for an end as every Python has it: it takes apart all modules at last, which takes
    0.5 s.
    """

    def __init__(self, server, arguments, cwd=ROOT, environment=None, stderr=None, **options):
        self.args, self.returncode, self._server = arguments, None, server
        self._files = [tempfile.TemporaryFile() for _ in range(1 if stderr else 2)]
        self._paths = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self._files]
        self.pid = server.ask(
            arguments=arguments,
            folder=str(cwd),
            environment=dict(os.environ if environment is None else environment),
            outputs=[*self._paths, stderr][:2],
            **options,
        )

    def poll(self):
        if self.returncode is None:
            self.returncode = self._server.ask(pid=self.pid)
        return self.returncode

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self):
        """Waits for its end; returns (stdout, stderr), or (stdout,) where stderr is a terminal."""
        if self.returncode is None:
            end = os.pidfd_open(self.pid)  # the server has not waited for it, so it exists
            try:
                assert select.select([end], [], [], PATIENCE)[0], self.args
            finally:
                os.close(end)
            self.poll()
        return tuple(Path(path).read_text() for path in self._paths)

    def finished(self):
        """Waits for its end; returns what subprocess.run would."""
        output = self.communicate()
        return CompletedProcess(self.args, self.returncode, *output)


def wait_for(condition, *processes):
    """Waits until `condition()` is true; fails if one of the processes ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        ended = [process for process in processes if process.poll() is not None]
        assert not ended or condition(), [process.communicate() for process in ended]
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --------------------------------------------------------------------------------------------------
# The server


def serve(modules):
    """Answers a line with the number of a new process, or with the exit code of an earlier one.

    Returns, in a new process, what it is to run; None at the end of the tests.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for what imports print
    sys.path[0] = str(ROOT)
    gc.disable()  # as cli.imports_without_garbage_collection
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # or each process would look through the imports for garbage, a second a time
    gc.enable()
    at_work = set()
    for line in sys.stdin:
        question = json.loads(line)
        if pid := question.get("pid"):
            ended, status = os.waitpid(pid, os.WNOHANG)
            at_work -= {ended}
            answer = os.waitstatus_to_exitcode(status) if ended else None
        elif answer := os.fork():
            at_work.add(answer)
        else:
            answers.close()
            return question
        print(json.dumps(answer), file=answers, flush=True)
    for pid in at_work:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None


def run(
    arguments, folder, environment, outputs,
    file_size_limit=None, own_session=False, whole_end=False,
):  # fmt: skip
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # to be chosen again
    for number, path in enumerate([os.devnull, *outputs]):
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOCTTY)
        os.dup2(file, number)
        os.close(file)
    if file_size_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    if own_session:
        os.setsid()
        # A shell starts background jobs with Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    if whole_end:
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
    if question := serve(sys.argv[1:]):
        run(**question)
