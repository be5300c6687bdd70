"""Step 0: extracts the articles of a Wikipedia dump (dump -> slice_00000/wiki_00000 ...).

    python3 cleanup_scripts/extract_dump.py --dump enwiki-20200101-...-multistream.xml.bz2

WikiExtractor makes the text. One WikiExtractor reads a dump from its beginning to its end, twice;
here all cores read it, each another part. This works for Wikimedia's multistream dumps, which are
rows of bzip2 streams of 100 pages each.

1. The dump is divided into slices of --slice_size at borders of streams (multistream.py).
2. Each slice's templates go to a file of their own. These files one after the other are the file of
   templates that every WikiExtractor reads before it begins.
3. WikiExtractors run side by side, one for each 4 of --num_workers, each with up to 4 processes.
   Each is given slice after slice (extractor_process.py), so it reads the templates only once.
   Slices are decompressed where they lie in the dump; there is no second copy of it.
4. The articles of slice 7 go to slice_00007/, in files of --file_size at most. All files in order
   hold the text that one WikiExtractor makes of the whole dump. Files and bytes do not depend on
   --num_workers.

The same command again resumes: it keeps the slices that are complete. A damaged stream is reported
and left out, and the exit code is then 1. Of any other dump (one stream, or plain XML), one
WikiExtractor makes AA/wiki_00 and so on, from the beginning each time. About 4 MB/s of XML per
core.
"""

import argparse
import functools
import glob
import importlib.util
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import cleanup_io
import dump_slices
import multistream
from journal import Journal

from bert.common import cli
from bert.common.files import DataError, FlagError, raise_if_any
from bert.common.path_flags import folder_problems

PROCESSES_PER_EXTRACTOR = 4  # one process decompresses for them, fast enough for about 6
SMALLEST_SLICE = "64K"
SIZE = re.compile(r"\d+[KMG]?")
MARK = ".extract_dump"  # a file in --out_dir, which says that all there may be removed
TEMPLATES = ".templates"  # a folder in --out_dir
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_flags() -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    # fmt: off
    add("--dump", required=True, metavar="FILE", help="a pages-articles dump, .xml.bz2 or .xml")
    add("--out_dir", default="extracted", metavar="DIR",
        help="a folder for the text alone (default: %(default)s)")
    add("--file_size", default="1M", metavar="SIZE",
        help="bytes of a file of text at most, as 256K or 1M; 0: a file for each article "
             "(default: %(default)s)")
    add("--slice_size", default="64M", metavar="SIZE",
        help="bytes of the dump per slice, up to the next border (default: %(default)s)")
    add("--num_workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes that extract (default: all cores, here %(default)s)")
    add("--wikiextractor", metavar="FILE",
        help="an older WikiExtractor.py, run without templates, as MLPerf did "
             "(default: the package wikiextractor, with templates)")
    add("--wikiextractor_python", default=sys.executable, metavar="PYTHON",
        help="what runs --wikiextractor: older versions need Python 3.10 or older "
             "(default: this Python)")
    add("--restart", action="store_true",
        help="extract every slice again; without it, those that are complete are kept")
    # fmt: on
    args = parser.parse_args()
    raise_if_any(list(problems(args)), FlagError)
    return args


def problems(args: argparse.Namespace) -> Iterable[str]:
    """What is wrong with the flags."""
    for flag, path in (("--dump", args.dump), ("--wikiextractor", args.wikiextractor)):
        if path is not None and not os.path.isfile(path):
            yield f"{flag} {path}: no such file"
    for flag, text, least in (
        ("--file_size", args.file_size, "0"),
        ("--slice_size", args.slice_size, SMALLEST_SLICE),
    ):
        if not SIZE.fullmatch(text) or byte_count(text) < byte_count(least):
            yield f"{flag} {text}: expected a size like 256K or 64M, at least {least}"
    yield from (f"--out_dir: {problem}" for problem in folder_problems(args.out_dir))
    names = os.listdir(args.out_dir) if os.path.isdir(args.out_dir) else []
    if names and MARK not in names:
        yield f"--out_dir {args.out_dir}: holds other files; give a new or an empty folder"
    if args.num_workers < 1:
        yield f"--num_workers {args.num_workers}: expected at least 1"


def byte_count(size: str) -> int:
    """'64M' -> 67108864."""
    return int(size.rstrip("KMG")) * UNITS[size.lstrip("0123456789")]


# --------------------------------------------------------------------------------------------------
# Which WikiExtractor


def extractor_command(args: argparse.Namespace) -> list[str]:
    """WikiExtractor without flags. FlagError if it does not run."""
    command = [sys.executable, "-m", "wikiextractor.WikiExtractor"]
    if args.wikiextractor:
        command = [args.wikiextractor_python, args.wikiextractor]
    try:
        trial = subprocess.run([*command, "--help"], capture_output=True, text=True)
    except OSError as error:
        raise FlagError(f"--wikiextractor_python {args.wikiextractor_python}: {error}") from None
    if trial.returncode:
        what, last = shlex.join(command), trial.stderr.strip().split("\n")[-1]
        advice = "run ./setup.sh"
        if args.wikiextractor:
            advice = "older versions need --wikiextractor_python=<Python 3.10 or older>"
        raise FlagError(f"{what} does not run: {last}; {advice}")
    return [*command, "--quiet"]


def extractor_file(args: argparse.Namespace) -> str:
    """The file whose change makes an extraction another one."""
    if args.wikiextractor:
        return args.wikiextractor
    spec = importlib.util.find_spec("wikiextractor")
    assert spec and spec.submodule_search_locations  # it has just run
    return os.path.join(spec.submodule_search_locations[0], "WikiExtractor.py")


# --------------------------------------------------------------------------------------------------
# A multistream dump


def extract_slices(
    args: argparse.Namespace, command: Sequence[str], header: bytes, pages_start: int
) -> None:
    """All slices; DataError if one failed, or has a damaged stream."""
    slices = dump_slices.slice_borders(
        args.dump, pages_start, byte_count(args.slice_size), args.num_workers
    )
    if not dump_slices.has_last_stream(args.dump):
        print(
            f"warning: {args.dump} does not end in </mediawiki>: it is truncated, or an excerpt",
            file=sys.stderr,
        )
    inputs = [args.dump, extractor_file(args)]
    if not args.wikiextractor:
        inputs.append(make_template_file(args, header, slices))
        command = [*command, "--templates", inputs[-1]]
    num_extractors = math.ceil(args.num_workers / PROCESSES_PER_EXTRACTOR)
    processes = math.ceil(args.num_workers / num_extractors)
    command = [*command, "--processes", str(processes), "--output", "-", "/dev/stdin"]
    print(f"$ {shlex.join(command)}  # {num_extractors} of these", flush=True)
    tasks = [
        (os.path.join(args.out_dir, f"slice_{number:05d}"), args.dump, *borders,
         byte_count(args.file_size))
        for number, borders in enumerate(slices)
    ]  # fmt: skip
    own = {task[0] for task in tasks}
    for folder in glob.glob(f"{glob.escape(args.out_dir)}/slice_*"):
        if folder not in own:  # of another --slice_size
            shutil.rmtree(folder)
    extract = functools.partial(dump_slices.extract_slice, command, header)
    results = run(args, "extract_slices", extract, tasks, num_extractors, inputs)
    raise_if_any(damages(args, tasks, results))
    if not any(written for _, written, _ in results):
        raise_no_article(args)


def make_template_file(
    args: argparse.Namespace, header: bytes, slices: Sequence[tuple[int, int]]
) -> str:
    """All templates of the dump, in its order, in one file; returns its path."""
    folder = os.path.join(args.out_dir, TEMPLATES)
    os.makedirs(folder, exist_ok=True)
    prefix = multistream.template_prefix(header)
    tasks = [
        (os.path.join(folder, f"slice_{number:05d}.xml"), args.dump, *borders)
        for number, borders in enumerate(slices)
    ]
    collect = functools.partial(dump_slices.collect_templates, prefix)
    run(args, "collect_templates", collect, tasks, args.num_workers, [args.dump])
    parts, path = [task[0] for task in tasks], os.path.join(folder, "all.xml")
    run(args, "join_templates", dump_slices.join_files, [(path, *parts)], 1, parts)
    return path


def run(
    args: argparse.Namespace,
    step: str,
    function: Callable,
    tasks: Sequence[tuple],
    num_workers: int,
    inputs: Sequence[str],
) -> list:
    """The results of function(*task) for all tasks, from the journal where a task is done.

    Each task begins with its output. DataError if one failed.
    """
    journal = Journal(step, args.out_dir, lambda task: (list(inputs), [task[0]]), args.restart)
    results, errors = cleanup_io.run_on_files(function, tasks, num_workers, journal)
    done = len(tasks) - len(errors)
    cleanup_io.finish(f"{step}: {done} of {len(tasks)}", errors, journal)
    return results


def damages(
    args: argparse.Namespace, tasks: Sequence[tuple], results: Sequence[tuple]
) -> list[str]:
    """What to say of damaged streams."""
    found = [
        f"{args.dump}: {os.path.basename(task[0])}, {damage}"
        for task, result in zip(tasks, results)
        for damage in result[2]
    ]
    advice = (
        "download the dump again; or, to leave these pages out: "
        f"cleanup_scripts/process_wiki.sh {args.out_dir} <another output folder>"
    )
    return [*found, advice] if found else []


# --------------------------------------------------------------------------------------------------
# A dump that is no multistream dump


def extract_whole(args: argparse.Namespace, command: Sequence[str]) -> None:
    """One WikiExtractor reads the dump; DataError, and no output, if it fails."""
    shutil.rmtree(args.out_dir)
    make_out_dir(args)
    # Its default of processes, cores - 1, is 0 on one core.
    flags = f"--processes {args.num_workers} --bytes {args.file_size} --output".split()
    command = [*command, *flags, args.out_dir, args.dump]
    print("$", shlex.join(command), flush=True)
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if process.returncode:
        shutil.rmtree(args.out_dir)
        last = "\n".join(process.stderr.strip().split("\n")[-3:])
        print(last, file=sys.stderr)
        raise DataError(f"{args.dump}: WikiExtractor stopped with an error: {why_it_stopped(last)}")
    if not any(map(has_article, glob.iglob(f"{glob.escape(args.out_dir)}/*/wiki_*"))):
        raise_no_article(args)


def has_article(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(5) == b"<doc "


def raise_no_article(args: argparse.Namespace) -> NoReturn:
    shutil.rmtree(args.out_dir)
    raise DataError(
        f"{args.dump}: WikiExtractor found no article in it; expected a pages-articles dump"
    )


def why_it_stopped(last_words: str) -> str:
    if "Compressed file ended" in last_words:
        return "the file is truncated: download it again (cleanup_scripts/download.py resumes)"
    if "Invalid data stream" in last_words:
        return "it is not a bzip2 file, or corrupt: download it again"
    if "UnicodeDecodeError" in last_words:
        return "it has bytes that are not UTF-8: it is corrupt, download it again"
    return "the lines above say why"


def make_out_dir(args: argparse.Namespace) -> None:
    os.makedirs(args.out_dir, exist_ok=True)
    with open(os.path.join(args.out_dir, MARK), "w"):
        pass


def main() -> None:
    args = parse_flags()
    command = extractor_command(args)
    make_out_dir(args)
    found = multistream.read_header(args.dump)
    if found:
        extract_slices(args, command, *found)
    else:
        extract_whole(args, command)


if __name__ == "__main__":
    cleanup_io.run(main)
