"""Used by all cleanup steps: their flags, their inputs, and work on many files. Never run.

File names: an extracted file is `<name>`; step n reads `<name><input_suffix>` and writes
`<name><output_suffix>` beside it (wiki_00 -> wiki_00.1 -> wiki_00.2 -> wiki_00.3 -> wiki_00.4).
`--data` means the extracted files only: other matches of the pattern (intermediate files, folders,
hidden files) are skipped, so that 'extracted/*/wiki_*' means the same before and after a run.
"""

import environment  # noqa: F401  before bert

# isort: split
import argparse
import concurrent.futures
import functools
import glob
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from journal import Journal, fixed_folder

from bert.common import cli
from bert.common.files import DataError, FlagError, atomic_writer, raise_if_any, read_bytes
from bert.common.processes import WORKER_KILLED, process_pool
from bert.common.progress import ProgressLine, time_left

STEP_SUFFIXES = (".1", ".2", ".3", ".4")
# separate_test_set.py: the test articles of one file are in <file><output_suffix>.test
TEST_SUFFIX = ".test"
BYTES_PER_MB = 1024 * 1024  # the unit of do_gather.py's --block_size, and of every figure printed


def run(main: Callable[[], int | None]) -> None:
    """cli.run; errors name process_wiki.sh's settings instead of flags if it runs the script.

    It gives them in SETTINGS_OF_FLAGS, as "num_workers=NUM_WORKERS ...".
    """
    pairs = [pair.split("=") for pair in os.environ.get("SETTINGS_OF_FLAGS", "").split()]
    settings = {f"--{flag}": setting for flag, setting in pairs}

    def report(text: str) -> None:
        words = re.sub(r"--\w+", lambda flag: settings.get(flag[0], flag[0]), text)
        print(words, file=sys.stderr)

    cli.run(main, report)


def step_parser(
    docstring: str, input_suffix: str, output_suffix: str | None = None
) -> argparse.ArgumentParser:
    """The flags of every step. `docstring` is that of the script: its text is the --help."""
    parser = cli.parser_from_docstring(docstring)
    add = parser.add_argument
    # fmt: off
    add("--data", default="./extracted/*/wiki_*", metavar="GLOB",
        help="extracted files, without any suffix, as a quoted pattern (default: %(default)r)")
    add("--input_suffix", default=input_suffix, metavar="S",
        help="read <extracted file>S; '' = the extracted file itself (default: %(default)r)")
    if output_suffix is not None:
        add("--output_suffix", default=output_suffix, metavar="S",
            help="write <extracted file>S, beside it (default: %(default)r)")
    add("--num_workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
        help="files processed at a time, one process each (default: all cores, here %(default)s)")
    add("--restart", action="store_true",
        help="make every output again; without it, outputs that belong to their inputs are kept")
    # fmt: on
    return parser


def extracted_files(pattern: str, *suffixes: str | None) -> list[str]:
    """The files that `pattern` matches, sorted, but none with a suffix (.1 to .4, `suffixes`)."""
    skipped = (*STEP_SUFFIXES, TEST_SUFFIX, *filter(None, suffixes))
    matches = sorted(glob.glob(os.path.expanduser(pattern)))
    return [path for path in matches if os.path.isfile(path) and not path.endswith(skipped)]


def check_inputs(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Returns (extracted files, messages about what is wrong) of a step's flags."""
    output_suffix = getattr(args, "output_suffix", None)
    files = extracted_files(args.data, args.input_suffix, output_suffix)
    problems = []
    if output_suffix == "":
        problems.append(
            "--output_suffix '' would overwrite the extracted files; expected a suffix such as '.1'"
        )
    elif output_suffix == args.input_suffix:
        problems.append(
            f"--input_suffix and --output_suffix are both {output_suffix!r}: "
            "the step would overwrite its input"
        )
    if args.num_workers < 1:
        problems.append(
            f"--num_workers {args.num_workers}: expected at least 1 "
            "(leave the flag out for all cores)"
        )
    if not files:
        problems.append(
            f"--data {args.data!r} matches no extracted file (a name without "
            f"{', '.join(STEP_SUFFIXES)}); look with: ls -d {args.data}"
        )
    missing = [path for path in files if not os.path.isfile(path + args.input_suffix)]
    if missing:
        more = f" ({len(missing) - 1} more such files)" if len(missing) > 1 else ""
        problems.append(
            f"{missing[0] + args.input_suffix}: no such file, but there is {missing[0]}{more}; "
            f"first run the step that writes {args.input_suffix!r} files"
        )
    return files, problems


def read_text(path: str, universal_newlines: bool = False) -> str:
    """The text of a UTF-8 file; with universal_newlines, CR LF and CR become LF.

    MLPerf's Python steps read in text mode, which does so (all but separate_test_set.py); its sed
    commands do not.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is 0x{data[error.start]:02x}, expected UTF-8 "
            f"({error.reason}); extract this file again, or repair or remove it"
        ) from None
    if universal_newlines and "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def write_text(path: str, text: str) -> int:
    """Writes `text` as UTF-8, completely or not at all; returns the number of bytes."""
    with atomic_writer(path) as file:
        return file.write(text.encode("utf-8"))


def transform_file(
    transform: Callable[[str], str],
    input_suffix: str,
    output_suffix: str,
    universal_newlines: bool,
    path: str,
) -> tuple[int, int]:
    """Writes transform(text of one file) to the next; returns (bytes read, bytes written)."""
    source = path + input_suffix
    written = write_text(path + output_suffix, transform(read_text(source, universal_newlines)))
    return os.path.getsize(source), written


def transform_files(
    name: str,
    docstring: str,
    transform: Callable[[str], str],
    input_suffix: str,
    output_suffix: str,
    universal_newlines: bool = False,
    slow_imports: Sequence[str] = (),
) -> None:
    """A whole step that makes one text of each text: flags, checks, work, result.

    slow_imports: modules that `transform` imports; here once, and not in each process.
    """
    args = step_parser(docstring, input_suffix, output_suffix).parse_args()
    files, problems = check_inputs(args)
    raise_if_any(problems, FlagError)
    for module in slow_imports:
        importlib.import_module(module)
    step = functools.partial(
        transform_file, transform, args.input_suffix, args.output_suffix, universal_newlines
    )
    journal = Journal(
        name,
        fixed_folder(args.data),
        lambda task: ([task[0] + args.input_suffix], [task[0] + args.output_suffix]),
        args.restart,
    )
    results, errors = run_on_files(step, [(path,) for path in files], args.num_workers, journal)
    finish(f"{name}: {totals(results)}", errors, journal)


def run_on_files(
    function: Callable[..., Any], tasks: Sequence[tuple], num_workers: int, journal: Journal
) -> tuple[list, list[str]]:
    """Calls function(*task) on several processes for each task not done before: (results, errors).

    tasks: tuples whose first item is the file that errors are about. journal: knows what was done.
    results: in the order of the tasks, None where one failed. errors: one message per failed task,
    in order; a corrupt file does not stop the others, and its older output is removed.
    """
    results = [journal.result_of(task) for task in tasks]
    to_do = [index for index, result in enumerate(results) if result is None]
    errors, started = {}, time.monotonic()
    with ProgressLine() as progress, process_pool(num_workers, len(to_do)) as pool:
        jobs = {pool.submit(function, *tasks[index]): index for index in to_do}
        for done, job in enumerate(concurrent.futures.as_completed(jobs), start=1):
            index = jobs[job]
            if error := _error_of(job, tasks[index][0]):
                errors[index] = error
                journal.remove_outputs(tasks[index])
            else:
                results[index] = job.result()
                journal.add(tasks[index], results[index])
            seconds = time.monotonic() - started
            progress.show(
                f"{done:,} of {len(to_do):,} files, {done / seconds:.1f} files/s, "
                f"{time_left(done, len(to_do), seconds)}"
            )
    return results, [errors[index] for index in sorted(errors)]


def _error_of(job, path):
    """What made a job fail, in words; None if it did not."""
    error = job.exception()
    if error is None:
        return None
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, BrokenProcessPool):
        return f"{path}: {WORKER_KILLED}"
    return f"{path}: {type(error).__name__}: {error}"


def finish(result: str, errors: list[str], journal: Journal) -> None:
    """Prints the result of a step; DataError with the errors of all files."""
    done_before = (
        f"; {journal.num_done_before} were done before (--restart makes them again)"
        if journal.num_done_before
        else ""
    )
    failed = f"; {len(errors)} FAILED" if errors else ""
    print(f"{result}, {time.monotonic() - journal.started:.1f} s{done_before}{failed}", flush=True)
    raise_if_any(errors)


def totals(results: list, noun: str = "files") -> str:
    """In words: how many results (bytes read, bytes written, ...) are not None, and megabytes."""
    done = [result for result in results if result is not None]
    read, written = (sum(result[column] for result in done) / BYTES_PER_MB for column in (0, 1))
    return f"{len(done)} of {len(results)} {noun}, {read:.2f} MB in, {written:.2f} MB out"
