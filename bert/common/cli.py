"""What the commands share: flags, imports without garbage collection, errors without a stack trace,
exit codes.
"""

import argparse
import contextlib
import difflib
import gc
import os
import shlex
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from bert.common.files import DataError, FlagError


class _Parser(argparse.ArgumentParser):
    _typed: list[str] = []

    def parse_known_args(self, args=None, namespace=None):
        self._typed = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """FlagError, with the flag that a misspelt one may have meant."""
        names = (word.split("=")[0] for word in self._typed if word.startswith("--"))
        for name in names:
            if name not in self._option_string_actions:
                close = difflib.get_close_matches(name, self._option_string_actions, n=1)
                message = f"{name}: no such flag" + (f"; did you mean {close[0]}?" if close else "")
                break
        raise FlagError(f"{message}; all flags: python3 {self.prog} --help")

    def convert_arg_line_to_args(self, line: str) -> list[str]:
        """What a line of a flag file means: flags, or nothing where it is empty or a comment."""
        return shlex.split(line, comments=True)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The terminal's width, but no more than 100 columns."""

    def __init__(self, prog: str):
        super().__init__(prog, width=min(100, shutil.get_terminal_size().columns) - 2)


def parser_from_docstring(docstring: str) -> argparse.ArgumentParser:
    """A parser whose --help is the script's docstring; flags cannot be abbreviated.

    An argument @file stands for the flags in that file, several a line or one, with # comments.
    """
    return _Parser(
        description=docstring,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        fromfile_prefix_chars="@",
    )


def add_boolean_flag(
    parser: argparse._ActionsContainer, name: str, default: bool | None, help: str
) -> None:
    """Adds `--name=True`, `--name=False`, `--name` and `--noname`, as absl's flags take them."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        f"--{name}", type=_boolean, nargs="?", const=True, default=default, metavar="True|False",
        help=f"{help} (default: {default})",
    )  # fmt: skip
    group.add_argument(
        f"--no{name}",
        dest=name,
        action="store_false",
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def _boolean(text):
    words = {
        "true": True, "t": True, "1": True, "yes": True,
        "false": False, "f": False, "0": False, "no": False,
    }  # fmt: skip
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected True or False")
    return words[text.lower()]


@contextlib.contextmanager
def imports_without_garbage_collection() -> Iterator[None]:
    """No garbage collection in the block; later ones skip every object that exists at its end.

    Imports leave next to no garbage. Those of ColossalAI make 800,000 objects: collection would
    take a sixth of their time, and 0.8 s whenever it looks through all of them.
    """
    was_enabled = gc.isenabled()
    gc.collect()  # what is skipped is never collected
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _print_error(text: str) -> None:
    print(text, file=sys.stderr)


def three_digits(number: float) -> str:
    """Returns a positive number as text with three digits that count: 0.123, 12.3, 123,456."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.3g}"


def run(main: Callable[[], int | None], report: Callable[[str], None] = _print_error) -> NoReturn:
    """Runs `main()` as a command: problems on stderr in words, exit code 1, or 2 for a FlagError.

    Ctrl-C, SIGTERM and a reader of its output that ends first (`| head`) end it without a stack
    trace.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    sys.unraisablehook = _send_lost_signal_again
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except FlagError as error:
        report(f"error: {error}")
        sys.exit(2)
    except (DataError, OSError) as error:
        rank = int(os.environ.get("RANK", 0))
        report(f"error on rank {rank}: {error}" if rank else f"error: {error}")
    except MemoryError as error:
        report(f"error: not enough memory{f': {error}' if str(error) else ''}")
    except ModuleNotFoundError as error:
        if not _is_of_a_package(error):
            raise
        report(_missing_package(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(1)


def _is_of_a_package(error):
    """Whether what is missing is no module of this project."""
    return bool(error.name) and error.name.split(".")[0] != "bert"


def _missing_package(error):
    return (
        f"error: {error}: {sys.executable} does not have this project's packages; type "
        "`source .venv/bin/activate`, or first ./setup.sh, which makes .venv"
    )


def _explain_missing_package(kind, error, trace):
    """The scripts import this module first, so that it can say what to do without the packages."""
    if kind is ModuleNotFoundError and _is_of_a_package(error):
        _print_error(_missing_package(error))
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _explain_missing_package


def run_as_rank(main: Callable[[], int | None]) -> None:
    """`run` for one of torchrun's processes: an error ends it at once, and is reported only once.

    The interpreter's own shutdown could wait for a collective that the other ranks never enter.
    """
    try:
        run(main, _report_of_first)
    except SystemExit as end:
        if not end.code:
            raise
        code = 1
        if isinstance(end.code, int):
            code = end.code
        else:
            _report_of_first(str(end.code))
    except Exception:
        _report_of_first(traceback.format_exc())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _report_of_first(text):
    """Prints an error unless another rank has printed one."""
    # When one rank has ended, torchrun sends SIGTERM to the others: not while this one reports.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if _is_first_to_report():
        _print_error(text)


def _is_first_to_report():
    """Whether no other rank on this machine has reported an error yet.

    torchrun gives each rank a file for its error, all of them below one folder, new for each start.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return True
    folder = os.path.dirname(os.path.dirname(error_file))
    try:
        os.close(os.open(os.path.join(folder, "reported"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _send_lost_signal_again(unraisable):
    """Sends Ctrl-C or SIGTERM again if Python lost its exception, in a finalizer or a callback."""
    signals = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
    if unraisable.exc_type not in signals:
        sys.__unraisablehook__(unraisable)
    elif not sys.is_finalizing():
        threading.Timer(0.01, os.kill, (os.getpid(), signals[unraisable.exc_type])).start()
