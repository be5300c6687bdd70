"""What the commands share at their edge."""

import contextlib
import gc
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from bert.common import cli


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_in_a_finalizer_is_not_lost(number):
    """Python lets no exception out of a finalizer, not even Ctrl-C's."""
    program = f"""
import os, signal, time
from bert.common import cli

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), {number:d})
        time.sleep(0.1)

def main():
    Finalized()
    time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run(main)
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert (process.returncode, process.stderr) == (128 + number, "")


def test_other_errors_in_finalizers_are_reported():
    program = (
        "from bert.common import cli; Lost = type('Lost', (), {'__del__': lambda self: 1 / 0}); "
        "cli.run(lambda: Lost() and None)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0 and "ZeroDivisionError" in process.stderr


@pytest.mark.parametrize(
    "end, code, report",
    [
        ("raise DataError('wrong')", 1, "error: wrong\n"),
        ("raise OSError('wrong')", 1, "error: wrong\n"),
        ("raise KeyboardInterrupt", 130, ""), ("1 / 0", 1, "ZeroDivisionError"),
        ("sys.exit(3)", 3, ""),
    ],
)  # fmt: skip
def test_error_of_a_rank_ends_it_at_once(end, code, report):
    """Here a thread that has no end stands for a collective that others never enter."""
    program = f"""
import sys, threading
from bert.common import cli
from bert.common.files import DataError

def main():
    threading.Thread(target=threading.Event().wait).start()
    print("so far")
    {end}

cli.run_as_rank(main)
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == code and process.stdout == "so far\n" and report in process.stderr
    assert report or process.stderr == ""


def test_wrong_flags_end_with_2():
    program = (
        "from bert.common import cli, files; "
        "cli.run(lambda: files.raise_if_any(['--a: 1', '--b: 2'], files.FlagError))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 2
    assert process.stderr == "error: --a: 1\n       --b: 2\n"


def test_rank_that_has_done_its_work_tidies_up():
    program = (
        "import atexit; from bert.common import cli; atexit.register(print, 'tidied up'); "
        "cli.run_as_rank(lambda: None)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "tidied up\n", "")


@pytest.mark.parametrize(
    "error, code",
    [
        ("DataError('the file is truncated')", 1),
        ("FlagError('the file is truncated')", 2),
        ("ModuleNotFoundError('the file is truncated')", 1),  # a stack trace, of one only
    ],
)
def test_only_the_first_of_torchruns_ranks_reports(tmp_path, error, code):
    """All end with an error; torchrun gives them files of their own below one folder."""
    (tmp_path / "attempt_0").mkdir()
    program = f"""
from bert.common import cli
from bert.common.files import DataError, FlagError

def main():
    raise {error}

cli.run_as_rank(main)
"""
    processes = []
    for rank in range(3):
        error_file = tmp_path / "attempt_0" / str(rank) / "error.json"
        environment = os.environ | {"RANK": str(rank), "TORCHELASTIC_ERROR_FILE": str(error_file)}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=ROOT,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    reports = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [code] * 3
    (report,) = filter(None, reports)
    assert report.strip().endswith("the file is truncated")
    assert report.startswith("Traceback" if "Module" in error else "error")


@pytest.mark.parametrize(
    "script",
    ["inspect_tfrecord.py", "make_idx.py", "pick_eval_samples.py", "verify_dataset.py"],
)
def test_scripts_run_by_themselves(script, tmp_path):
    """The other tests run them as forks (tests/script_server.py); those not here have one that does
    so with the real program.
    """
    command = [sys.executable, str(ROOT / script), "--unknown"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("error: --unknown: no such flag; all flags: python3 ")


SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in (ROOT, ROOT / "cleanup_scripts")
    for path in folder.glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)
SLOW_TO_IMPORT = {
    "colossalai", "fsspec", "matplotlib", "nltk", "nvidia", "ray", "regex", "tensorboard",
    "tensorflow", "torch", "transformers", "triton",
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_narrow_and_waits_for_no_framework(script):
    program = f"""
import runpy, sys
sys.argv = [{script!r}, "--help"]
sys.path[0] = {os.path.dirname(script)!r}
try:
    runpy.run_path({script!r}, run_name="__main__")
finally:
    print(*sorted({SLOW_TO_IMPORT} & sys.modules.keys()), file=sys.stderr)
"""
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert process.returncode == 0 and process.stderr == "\n"
    assert "--help" in process.stdout
    assert max(map(len, process.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    "command, package",
    [
        ("train.py --bert_config_file=x --output_dir=x --tfrecord_train=x --tfrecord_eval=x "
         "--train_batch_size=1 --learning_rate=1 --num_train_steps=1", "torch"),
        ("make_idx.py --help", "google_crc32c"),
        ("cleanup_scripts/cleanup_file.py --help", "bert"),
        ("cleanup_scripts/extract_dump.py --help", "bert"),
    ],
)  # fmt: skip
def test_python_without_the_packages_is_explained(command, package, tmp_path):
    script, *flags = command.split()
    # -S: without installed packages; -E: nor PYTHONPATH.
    process = subprocess.run(
        [sys.executable, "-E", "-S", str(ROOT / script), *flags],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 1 and process.stderr.count("\n") == 1, process.stderr
    assert f"No module named '{package}'" in process.stderr
    assert "`source .venv/bin/activate`" in process.stderr


@pytest.mark.parametrize(
    "number, text",
    [(0.001234, "0.00123"), (1.234, "1.23"), (99.94, "99.9"), (99.96, "100"), (123456, "123,456")],
)
def test_three_digits(number, text):
    assert cli.three_digits(number) == text


@pytest.mark.parametrize("error", [None, ModuleNotFoundError])
def test_imports_are_left_out_of_garbage_collection(error):
    frozen = gc.get_freeze_count()
    with pytest.raises(error) if error else contextlib.nullcontext():
        with cli.imports_without_garbage_collection():
            assert not gc.isenabled()
            module = [[]]
            if error:
                raise error
    assert gc.isenabled() and gc.get_freeze_count() > frozen
    assert not any(tracked is module for tracked in gc.get_objects())
