"""What the cleanup steps share: their flags, their inputs, whole-file reading and writing, one
report for many files.

Imported by the scripts of this folder, never run.

File names: an extracted file is `<name>`; step n reads `<name><input_suffix>` and writes
`<name><output_suffix>` beside it (wiki_00 -> wiki_00.1 -> wiki_00.2 -> wiki_00.3 -> wiki_00.4).
`--data` means the extracted files only: what a pattern matches besides (intermediate files,
folders, hidden files) is passed over, so that 'extracted/*/wiki_*' means the same before and after
a run.
"""

import argparse
import concurrent.futures
import concurrent.futures.process
import contextlib
import glob
import os
import signal
import sys
import time

from journal import Journal, fixed_folder

STEP_SUFFIXES = (".1", ".2", ".3", ".4")
TEST_SUFFIX = (
    ".test"  # separate_test_set.py: the test articles of one file, <file><output_suffix>.test
)
MAX_PROBLEMS_SHOWN = 20
BYTES_PER_MB = 1024 * 1024  # the unit of do_gather.py's --block_size, and of every number told here


class BrokenInput(Exception):
    """One input file cannot be processed; the message names the file, the place, what was found and
    what to do.
    """


def step_parser(docstring, input_suffix, output_suffix=None):
    """The flags every step has. `docstring` is that of the script: its text is the --help."""
    parser = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default="./extracted/*/wiki_*",
        metavar="GLOB",
        help="extracted files, without any suffix, as a quoted glob pattern (default: %(default)r)",
    )
    parser.add_argument(
        "--input_suffix",
        default=input_suffix,
        metavar="S",
        help="read <extracted file>S; '' = the extracted file itself (default: %(default)r)",
    )
    if output_suffix is not None:
        parser.add_argument(
            "--output_suffix",
            default=output_suffix,
            metavar="S",
            help="write <extracted file>S, beside it (default: %(default)r)",
        )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="files processed at a time, one process each (default: all cores, here %(default)s)",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help=(
            "make every output again; "
            "without it, outputs that belong to their inputs stay as they are"
        ),
    )
    return parser


def extracted_files(pattern, *suffixes):
    """The extracted files that `pattern` matches, sorted; no intermediate files (.1 to .4 and
    `suffixes`).
    """
    passed_over = (*STEP_SUFFIXES, TEST_SUFFIX) + tuple(suffix for suffix in suffixes if suffix)
    matches = sorted(glob.glob(os.path.expanduser(pattern)))
    return [path for path in matches if os.path.isfile(path) and not path.endswith(passed_over)]


def check_inputs(args):
    """Returns (extracted files, problems) of a step's flags; problems is a list of messages, empty
    if all is well.
    """
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
    for path in files:
        if not os.path.isfile(path + args.input_suffix):
            problems.append(
                f"{path + args.input_suffix}: not there, but {path} is; "
                f"first run the step that writes {args.input_suffix!r} files"
            )
    return files, problems


def exit_if(problems):
    """Tells all problems at once on stderr and ends with exit code 2; returns if there are none."""
    if not problems:
        return
    for problem in problems[:MAX_PROBLEMS_SHOWN]:
        print(f"error: {problem}", file=sys.stderr)
    if len(problems) > MAX_PROBLEMS_SHOWN:
        print(f"error: and {len(problems) - MAX_PROBLEMS_SHOWN} more like these", file=sys.stderr)
    sys.exit(2)


def read_text(path, universal_newlines=False):
    """The text of a UTF-8 file, its newlines as they are; with universal_newlines, CR LF and CR
    become LF.

    MLPerf's Python steps read in text mode, which does so (all but separate_test_set.py); its sed
    commands do not.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenInput(
            f"{path}: byte {error.start} is 0x{data[error.start]:02x}, expected UTF-8 "
            f"({error.reason}); extract this file again, or repair or remove it"
        ) from None
    if universal_newlines and "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


@contextlib.contextmanager
def atomic_file(path):
    """A binary file that appears as `path` when the block ends, whole; after an exception nothing
    is left of it.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_text(path, text):
    """Writes `text` as UTF-8, atomically; returns the number of bytes."""
    data = text.encode("utf-8")
    with atomic_file(path) as file:
        file.write(data)
    return len(data)


def transform_file(transform, input_suffix, output_suffix, path, universal_newlines=False):
    """Writes transform(text of one file) to the next; returns (bytes read, bytes written)."""
    source = path + input_suffix
    written = write_text(path + output_suffix, transform(read_text(source, universal_newlines)))
    return os.path.getsize(source), written


def run_on_files(function, tasks, num_workers, journal):
    """Calls function(*task) on `num_workers` processes for every task that was not done before;
    returns (results, errors).

    tasks: tuples whose first item is the file that errors are told of. journal: Journal, knows the
    tasks done before.
    results: in the order of the tasks, None where one failed. errors: one message per failed task,
    in order; a broken file does not stop the others, and what an earlier call made of it is
    removed.
    """
    started = time.monotonic()
    results, errors = [journal.result_of(task) for task in tasks], {}
    to_do = [index for index, result in enumerate(results) if result is None]
    for done, (number, (result, error)) in enumerate(
        _outcomes(function, [tasks[i] for i in to_do], num_workers), start=1
    ):
        index = to_do[number]
        if error:
            errors[index] = error
            journal.remove_outputs(tasks[index])
        else:
            results[index] = result
            journal.add(tasks[index], result)
        _show_progress(done, len(to_do), time.monotonic() - started)
    return results, [errors[index] for index in sorted(errors)]


def report(errors, result_line, journal):
    """Tells the errors of the files and the result; returns the exit code: 0, or 1 if a file
    failed.
    """
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    before = (
        f"; {journal.num_done_before} were done before (--restart makes them again)"
        if journal.num_done_before
        else ""
    )
    print(result_line + before + (f"; {len(errors)} FAILED" if errors else ""))
    return 1 if errors else 0


def run_step(name, function, files, args):
    """run_on_files and report, for a function(file) that returns (bytes read, bytes written)."""
    started = time.monotonic()
    journal = Journal(
        name,
        fixed_folder(args.data),
        lambda task: ([task[0] + args.input_suffix], [task[0] + args.output_suffix]),
        args.restart,
    )
    results, errors = run_on_files(function, [(path,) for path in files], args.num_workers, journal)
    return report(errors, f"{name}: {totals(results)}, {time.monotonic() - started:.1f} s", journal)


def totals(results, noun="files"):
    """In words: how many of the results, (bytes read, bytes written, ...) or None after an error,
    and megabytes.
    """
    done = [result for result in results if result is not None]
    read, written = (sum(result[column] for result in done) / BYTES_PER_MB for column in (0, 1))
    return f"{len(done)} of {len(results)} {noun}, {read:.2f} MB in, {written:.2f} MB out"


def _outcomes(function, tasks, num_workers):
    """Yields (index, (result, error message)) as the tasks get done."""
    workers = min(num_workers, len(tasks))
    if workers <= 1:
        for index, task in enumerate(tasks):
            yield index, _guarded(function, task)
        return
    with concurrent.futures.ProcessPoolExecutor(workers, initializer=_ignore_interrupt) as pool:
        futures = {pool.submit(_guarded, function, task): index for index, task in enumerate(tasks)}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], _result_of(future, tasks[futures[future]][0])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _guarded(function, task):
    try:
        return function(*task), None
    except BrokenInput as error:
        return None, str(error)
    except Exception as error:
        return None, f"{task[0]}: {type(error).__name__}: {error}"


def _result_of(future, path):
    try:
        return future.result()
    except concurrent.futures.process.BrokenProcessPool:
        return None, (
            f"{path}: a worker process was killed (out of memory?); "
            "run the step again with a smaller --num_workers"
        )


def run(main):
    """Runs main() as a command: its result is the exit code; Ctrl-C and SIGTERM end it without a
    stack trace.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _ignore_interrupt():
    """Ctrl-C is for the parent, which then lets the files in work finish and stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _show_progress(done, total, seconds):
    """One line on a terminal, overwritten at each file and wiped after the last."""
    if not sys.stderr.isatty():
        return
    rate = done / max(seconds, 1e-9)
    wipe = "\r\033[K" if done == total else ""
    print(
        (
            f"\r{done}/{total} files, {rate:.1f} files/s, "
            f"{(total - done) / rate:.0f} s left\033[K{wipe}"
        ),
        end="",
        file=sys.stderr,
        flush=True,
    )
