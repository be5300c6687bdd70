"""What all commands share: boolean flags, errors without a stack trace, exit codes."""

import argparse
import os
import shlex
import signal
import sys
import threading
import time
import traceback

from bert.common.files import DataError


class _Parser(argparse.ArgumentParser):
    def convert_arg_line_to_args(self, line):
        """What a line of a flag file means: flags, or nothing where it is empty or a comment."""
        return shlex.split(line, comments=True)


def parser_from_docstring(docstring):
    """A parser whose --help is the script's docstring; flags cannot be abbreviated, so that new
    ones break no call.

    An argument @file stands for the flags in that file, several a line or one, with # comments.
    """
    return _Parser(
        description=docstring,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        fromfile_prefix_chars="@",
    )


def add_boolean_flag(parser, name, default, help):
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


def run(main):
    """Runs `main()` as a command: problems on stderr in words, exit code 1; clean ends for Ctrl-C
    and SIGTERM.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    sys.unraisablehook = _send_lost_signal_again
    rank = int(os.environ.get("RANK", 0))
    try:
        sys.exit(main())
    except (DataError, OSError) as error:
        _let_rank_0_speak(rank)
        sys.exit(f"error: {error}" if rank == 0 else f"error on rank {rank}: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception:
        _let_rank_0_speak(rank)
        raise


def run_as_rank(main):
    """`run` for a process among others: an error ends it at once.

    The interpreter's tidying up could wait for a collective that the other processes never come to,
    and torchrun for it.
    """
    try:
        run(main)
    except SystemExit as end:
        if not end.code:
            raise
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _send_lost_signal_again(unraisable):
    """Ctrl-C or SIGTERM may come in a finalizer or a callback from C, out of which Python lets no
    exception: it is sent again.
    """
    signals = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
    if unraisable.exc_type not in signals:
        sys.__unraisablehook__(unraisable)
    elif not sys.is_finalizing():
        threading.Timer(0.01, os.kill, (os.getpid(), signals[unraisable.exc_type])).start()


def _let_rank_0_speak(rank):
    """Under torchrun usually every rank has the same error: the others wait, and are ended when
    rank 0 has told it.
    """
    if rank:
        wait_to_be_ended()


def wait_to_be_ended():
    """Time for another rank to tell its error and for torchrun to end this process after it,
    without a word.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(5.0)
