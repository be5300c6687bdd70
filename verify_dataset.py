#!/usr/bin/env python3
"""Is this the data that MLPerf published? Is every file of it whole?

python3 verify_dataset.py --results=wiki/results                        # the parts and eval.txt
python3 verify_dataset.py --tfrecord=tfrecord --eval_10k=eval/eval_10k  # the examples
python3 verify_dataset.py --tfrecord=quickstart_output/tfrecord/train --own_data \\
    --max_seq_length=128 --max_predictions_per_seq=20

Reads every byte, files in parallel (0.8 GB/s of records a core, 0.3 GB/s of text), and prints a
table: green `ok`, red `FAILED` (corrupt or incomplete), yellow `differs` (whole, but not as MLPerf
published it). Writes nothing.

Exit code: 0 all is well; 1 something failed; 3 whole, but not the published data; 2 a flag that
does not exist.
"""

import argparse
import concurrent.futures
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from bert.common import cli, kernels
from bert.common.files import DataError, list_folder_or_pattern, raise_if_any
from bert.common.md5_list import md5_lines
from bert.common.processes import process_pool
from bert.common.progress import ProgressLine, time_left
from bert.examples.records import find_payloads, have_checksums
from bert.loader.instance_source import are_instance_files
from bert.verification import check_table, dataset_checks
from bert.verification.check_table import DIFFERS, FAILED, Row
from bert.verification.example_check import Rules, check_block, judge_examples, make_rules
from bert.verification.file_report import (
    eval_articles_problem,
    eval_digest,
    inspect_text,
    inspect_tfrecord,
)
from tokenization import load_vocab

Report = TypeVar("Report")

EXIT_CODES = {"as published": 0, "whole": 0, "not the published data": 3, "broken": 1}


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    what = parser.add_argument_group("what to verify, one or more")
    what.add_argument(
        "--results", metavar="FOLDER", help="text: part-XXXXX-of-YYYYY, eval.txt and eval.md5"
    )
    what.add_argument(
        "--tfrecord",
        metavar="FOLDER",
        help="training TFRecords, or instance files: a folder, a glob pattern or a file",
    )
    what.add_argument("--eval_10k", metavar="FILE", help="the evaluation TFRecord")
    add = parser.add_argument
    add(
        "--own_data",
        action="store_true",
        help="data of your own: no comparison with what MLPerf published",
    )
    add("--md5_list", metavar="FILE",
        help="compare --results with this list too, as md5sum writes it; "
             "cleanup_scripts/download.py --mlperf=text writes MLCommons' list, "
             "download/results4.md5")  # fmt: skip
    add("--vocab_file",
        default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "vocab.txt"),
        help="the vocabulary that the examples were made with "
             "(default: vocab.txt beside this script)")  # fmt: skip
    add(
        "--max_seq_length",
        type=int,
        default=512,
        help="the value that the examples were made with (default: %(default)s)",
    )
    add("--max_predictions_per_seq", type=int, default=76, help="as above (default: %(default)s)")
    add(
        "--masked_lm_prob",
        type=float,
        default=0.15,
        help="as above; 0 = do not check how many are masked (default: %(default)s)",
    )
    add("--num_workers", type=int, default=len(os.sched_getaffinity(0)),
        help="files read at the same time (default: all %(default)s cores)")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(argv)


def check(
    flags: argparse.Namespace,
) -> tuple[dict[str, list[str]], dict[str, str], dict[str, int]]:
    """Returns ({"results" and "tfrecord": files}, {name: MD5} of --md5_list, vocabulary).

    DataError with all that is wrong.
    """
    problems: list[str] = []
    paths: dict[str, list[str]] = {}
    md5s: dict[str, str] = {}
    vocab: dict[str, int] = {}
    if not (flags.results or flags.tfrecord or flags.eval_10k):
        problems.append(
            "nothing to verify: give --results, --tfrecord or --eval_10k; --help shows examples"
        )
    for name in ("results", "tfrecord"):
        where = getattr(flags, name)
        try:
            paths[name] = list_folder_or_pattern(where) if where else []
            if name == "tfrecord":
                are_instance_files(paths[name])
        except DataError as error:
            problems.append(f"--{name}: {error}")
    if flags.results and not os.path.isdir(flags.results):
        problems.append(f"--results: {flags.results}: expected a folder")
    if flags.eval_10k and not os.path.isfile(flags.eval_10k):
        problems.append(f"--eval_10k: {flags.eval_10k}: no such file")
    if flags.md5_list:
        try:
            md5s = read_md5_list(flags.md5_list)
        except (OSError, UnicodeDecodeError, DataError) as error:
            problems.append(f"--md5_list: {error}")
    try:
        vocab = load_vocab(flags.vocab_file)
        missing = [token for token in ("[CLS]", "[SEP]", "[UNK]", "[MASK]") if token not in vocab]
        problems += [f"--vocab_file: {flags.vocab_file} lacks {token}" for token in missing]
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"--vocab_file: {error}")
    for name, least in (("max_seq_length", 5), ("max_predictions_per_seq", 1), ("num_workers", 1)):
        if getattr(flags, name) < least:
            problems.append(f"--{name}={getattr(flags, name)}: expected {least} or more")
    if not 0 <= flags.masked_lm_prob <= 1:
        problems.append(f"--masked_lm_prob={flags.masked_lm_prob}: expected 0 to 1")
    raise_if_any(problems)
    return paths, md5s, vocab


def read_md5_list(path: str) -> dict[str, str]:
    """{file name: MD5} of a list as md5sum writes it; folders in it do not count."""
    with open(path, encoding="utf-8") as file:
        return {os.path.basename(name): md5 for name, md5, _ in md5_lines(file.read(), path)}


def compile_kernels(rules: Rules) -> None:
    """Once, before the processes start, for a file's read-only arrays."""
    if not kernels.is_compiled(judge_examples):
        print("compiling, once on this machine: about 10 seconds", file=sys.stderr)
    data, places = np.frombuffer(bytes(64), np.uint8), np.array([0])
    find_payloads(data)
    have_checksums(data, places, places)
    check_block(data, places, places, rules, str)


def inspect_all(
    inspect: Callable[[str], Report], paths: Sequence[str], num_workers: int
) -> list[Report]:
    """Calls inspect(path) for all files on several processes; returns the reports in that order."""
    sizes, done, started = {path: os.path.getsize(path) for path in paths}, 0, time.monotonic()
    total = sum(sizes.values())
    with ProgressLine() as progress, process_pool(num_workers, len(paths)) as pool:
        jobs = {pool.submit(inspect, path): path for path in paths}
        for job in concurrent.futures.as_completed(jobs):
            done += sizes[jobs[job]]
            seconds = time.monotonic() - started
            left = f", {time_left(done, total, seconds)}" if done else ""
            progress.show(
                f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB, "
                f"{done / seconds / 1e6:,.0f} MB/s{left}"
            )
        return [job.result() for job in jobs]


def verify_results(
    flags: argparse.Namespace, paths: Sequence[str], md5s: Mapping[str, str]
) -> list[Row]:
    reports = inspect_all(inspect_text, paths, flags.num_workers)
    has_eval = {"eval.txt", "eval.md5"} <= {os.path.basename(path) for path in paths}
    eval_problem = (
        eval_articles_problem(flags.results) if has_eval else "eval.txt or eval.md5 is missing"
    )
    rows = dataset_checks.results_rows(reports, flags.own_data, eval_problem)
    if not flags.own_data:
        rows += dataset_checks.published_results_rows(reports)
    if md5s:
        rows += dataset_checks.listed_results_rows(reports, md5s)
    return rows


def verify_tfrecord(
    flags: argparse.Namespace, paths: Sequence[str], rules: Rules
) -> tuple[list[Row], list[str]]:
    """Returns (rows, likely causes of differences)."""
    reports = inspect_all(
        functools.partial(inspect_tfrecord, rules=rules), paths, flags.num_workers
    )
    rows = [
        dataset_checks.names_row(
            "tfrecord", [os.path.basename(path) for path in paths], flags.own_data
        )
        if os.path.isdir(flags.tfrecord)
        else dataset_checks.chosen_files_row("tfrecord", paths),
        *dataset_checks.example_rows("tfrecord", reports, rules),
        dataset_checks.copies_row("tfrecord", reports),
    ]
    if flags.own_data:
        return rows, []
    with open(flags.vocab_file, "rb") as file:
        vocab_md5 = hashlib.md5(file.read()).hexdigest()
    published = dataset_checks.published_tfrecord_rows(reports, vocab_md5)
    differs = any(row.status == DIFFERS for row in published)
    return rows + published, dataset_checks.likely_causes(reports, rules) if differs else []


def verify_eval(flags: argparse.Namespace, rules: Rules) -> list[Row]:
    report = inspect_tfrecord(flags.eval_10k, rules)
    rows = dataset_checks.example_rows("evaluation set", [report], rules)
    if flags.own_data:
        return rows
    is_readable = (
        not report.broken_at
        and not report.num_corrupt
        and not any(problem.kind == "features" for problem in report.problems)
    )
    return rows + dataset_checks.published_eval_rows(
        report, eval_digest(flags.eval_10k) if is_readable else None
    )


def verdict_of(rows: Sequence[Row], own_data: bool) -> str:
    statuses = {row.status for row in rows}
    if FAILED in statuses:
        return "broken"
    if DIFFERS in statuses:
        return "not the published data"
    return "whole" if own_data else "as published"


def sentence(verdict: str, rows: Sequence[Row]) -> str:
    count = {status: sum(row.status == status for row in rows) for status in (FAILED, DIFFERS)}
    return {
        "broken": f"BROKEN: {count[FAILED]} of {len(rows)} checks failed",
        "not the published data": (
            "whole, but not what MLPerf published "
            f"({count[DIFFERS]} of {len(rows)} lines differ); for data of your own add --own_data"
        ),
        "whole": (
            f"whole: all {len(rows)} checks passed; "
            "not compared with what MLPerf published (--own_data)"
        ),
        "as published": f"whole and as published: all {len(rows)} checks passed",
    }[verdict]


def main(argv: Sequence[str] | None = None) -> int:
    flags = parse_flags(argv)
    started = time.monotonic()
    paths, md5s, vocab = check(flags)
    rules = make_rules(
        flags.max_seq_length, flags.max_predictions_per_seq, flags.masked_lm_prob, vocab
    )
    if flags.tfrecord or flags.eval_10k:
        compile_kernels(rules)
    rows: list[Row] = []
    causes: list[str] = []
    if flags.results:
        rows += verify_results(flags, paths["results"], md5s)
    if flags.tfrecord:
        tfrecord_rows, causes = verify_tfrecord(flags, paths["tfrecord"], rules)
        rows += tfrecord_rows
    if flags.eval_10k:
        rows += verify_eval(flags, rules)
    verdict = verdict_of(rows, flags.own_data)
    seconds = round(time.monotonic() - started, 1)
    if flags.json:
        print(
            check_table.as_json(
                rows,
                verdict=verdict,
                exit_code=EXIT_CODES[verdict],
                likely_causes=causes,
                seconds=seconds,
            )
        )
    else:
        check_table.print_table(rows)
        for cause in causes:
            print(f"\nlikely cause: {cause}", end="")
        print(("\n" if causes else "") + f"\n{sentence(verdict, rows)} ({seconds:.1f} s)")
    return EXIT_CODES[verdict]


if __name__ == "__main__":
    cli.run(main)
