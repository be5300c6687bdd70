"""Processes that need not import the frameworks, which takes 12 s of CPU: a server, which has only
imported them, forks one for each script that it is told to run.

Such a process has its own environment, output and number, ends as every Python does, and dies with
the tests. It draws no curves, which takes longer than a run.
"""

import atexit
import functools
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time

PATIENCE = 1800.0  # seconds; a machine may be busy
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Forked:
    """A script at work. It has what tests use of a subprocess.Popen with text in pipes."""

    def __init__(self, script, *arguments, environment=None, file_size_limit=-1):
        """environment: in place of this process's. file_size_limit: bytes of a file, -1: none."""
        self.args = [str(script), *map(str, arguments)]
        self.returncode = None
        self._output = [tempfile.TemporaryFile("w+") for _ in range(2)]
        self.pid = _ask(
            arguments=self.args,
            environment=dict(os.environ if environment is None else environment),
            output=[f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self._output],
            file_size_limit=file_size_limit,
        )

    def poll(self):
        if self.returncode is None:
            self.returncode = _ask(pid=self.pid)
        return self.returncode

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self):
        """Waits for its end; returns (stdout, stderr)."""
        deadline = time.monotonic() + PATIENCE
        while self.poll() is None:
            assert time.monotonic() < deadline, self.args
            time.sleep(0.02)
        for file in self._output:
            file.seek(0)
        return tuple(file.read() for file in self._output)

    def finished(self):
        """Waits for its end; returns what subprocess.run would."""
        output = self.communicate()
        return subprocess.CompletedProcess(self.args, self.returncode, *output)


@functools.cache
def _server():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((ROOT, os.path.join(ROOT, "tests")))}
    server = subprocess.Popen(
        [sys.executable, __file__],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    atexit.register(server.communicate)  # which closes its stdin, and waits for it
    return server


def _ask(**question):
    server = _server()
    print(json.dumps(question), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


# --------------------------------------------------------------------------------------------------
# The server


def serve():
    """Answers a line with the number of a new process, or with the exit code of an earlier one.

    Returns, in a new process, what it is to be; None at the end of the tests.
    """
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
            return question
        print(json.dumps(answer), flush=True)
    for pid in at_work:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None


def run(arguments, environment, output, file_size_limit):
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(output, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    if file_size_limit >= 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    sys.argv[:] = arguments
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    import colossalai_on_cpu  # noqa: F401

    import bert.training.run

    bert.training.run.plot_curves = lambda *paths: None
    gc.freeze()  # what is imported: no process has to look through it for garbage, a second a time
    if question := serve():
        run(**question)
