#!/usr/bin/env python3
"""Is this the data that MLPerf published? Is every file of it whole?

python3 verify_dataset.py --results=wiki/results                        # the parts and eval.txt
python3 verify_dataset.py --tfrecord=tfrecord --eval_10k=eval/eval_10k  # the examples
python3 verify_dataset.py --tfrecord=quickstart_output/tfrecord/train --own_data \\
    --max_seq_length=32 --max_predictions_per_seq=5

Reads every byte, files in parallel (0.8 GB/s of records a core, 0.3 GB/s of text), and prints a
table: green `ok`, red `FAILED` (corrupt or incomplete), yellow `differs` (whole, but not as MLPerf
published it). Then it lists what it could not check. Writes nothing.

With --results and --tfrecord, parts that no manifest vouches for are made again from their text and
compared: about 3.5 seconds of one core for a part of 27 MB, 300 MB of memory and 60 MB of temporary
files.

Exit code: 0 all is well; 1 something failed; 2 a wrong flag; 3 whole, but not the published data.
"""

import argparse
import concurrent.futures
import functools
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from bert.common import cli, kernels
from bert.common.files import DataError, FlagError, raise_if_any
from bert.common.md5_list import md5_lines
from bert.common.path_flags import list_folder_or_pattern
from bert.common.processes import process_pool
from bert.common.progress import ProgressLine, time_left
from bert.examples.records import find_payloads, have_checksums
from bert.generation import instances, part
from bert.generation.part import Settings, generate
from bert.generation.shards import MANIFEST_FOLDER
from bert.loader.instance_source import are_instance_files
from bert.verification import (
    check_table,
    dataset_checks,
    file_names,
    origin,
    published,
    published_checks,
    remaking,
)
from bert.verification.check_table import DIFFERS, FAILED, Row
from bert.verification.example_check import Rules, check_block, judge_examples, make_rules
from bert.verification.file_report import (
    SKETCH_SIZE,
    TextReport,
    TFRecordReport,
    eval_articles_problem,
    eval_digest,
    inspect_text,
    inspect_tfrecord,
)
from bert.verification.remaking import Remade
from tokenization import FullTokenizer, load_vocab

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
    add_generator_flags(parser)
    add("--num_workers", type=int, default=len(os.sched_getaffinity(0)),
        help="files read at the same time (default: all %(default)s cores)")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(argv)


def add_generator_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "how to make parts again",
        "with --results and --tfrecord; of no effect where manifests or instance files say it",
    )
    add = group.add_argument
    add("--remake_parts", type=int, metavar="N",
        help="parts to make again at most, evenly spread; 0: none (default: all)")  # fmt: skip
    add("--random_seed", type=int, default=12345, help="as above (default: %(default)s)")
    add("--dupe_factor", type=int, default=10, help="as above (default: %(default)s)")
    add("--short_seq_prob", type=float, default=0.1, help="as above (default: %(default)s)")
    cli.add_boolean_flag(group, "do_lower_case", True, "as above")
    cli.add_boolean_flag(group, "preserve_unused_tokens", False, "as above")


def check(
    flags: argparse.Namespace,
) -> tuple[dict[str, list[str]], dict[str, str], dict[str, int]]:
    """Returns ({"results" and "tfrecord": files}, {name: MD5} of --md5_list, vocabulary).

    FlagError with all that is wrong.
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
    except (OSError, ValueError) as error:
        problems.append(f"--vocab_file: {error}")
    for name, least in (("max_seq_length", 5), ("max_predictions_per_seq", 1), ("num_workers", 1),
                        ("dupe_factor", 1), ("remake_parts", 0)):  # fmt: skip
        if getattr(flags, name) is not None and getattr(flags, name) < least:
            problems.append(f"--{name}={getattr(flags, name)}: expected {least} or more")
    if not 0 <= flags.masked_lm_prob <= 1:
        problems.append(f"--masked_lm_prob={flags.masked_lm_prob}: expected 0 to 1")
    if not 0 <= flags.short_seq_prob <= 1:
        problems.append(f"--short_seq_prob={flags.short_seq_prob}: expected 0 to 1")
    raise_if_any(problems, FlagError)
    return paths, md5s, vocab


def read_md5_list(path: str) -> dict[str, str]:
    """{file name: MD5} of a list as md5sum writes it; folders in it do not count."""
    with open(path, encoding="utf-8") as file:
        return {os.path.basename(name): md5 for name, md5, _ in md5_lines(file.read(), path)}


def compile_kernels(rules: Rules) -> None:
    """Once, before the processes start, for a file's read-only arrays."""
    kernels.announce_compilation(judge_examples)
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


class Checks(NamedTuple):
    """What was found so far."""

    rows: list[Row]
    likely_causes: list[str]
    not_checked: list[str]

    def add(self, row: Row | None) -> None:
        if row:
            self.rows.append(row)


def verify_results(
    flags: argparse.Namespace, paths: Sequence[str], md5s: Mapping[str, str], checks: Checks
) -> dict[str, TextReport]:
    """Returns {name: report} of the texts."""
    reports = inspect_all(inspect_text, paths, flags.num_workers)
    texts = {os.path.basename(report.path): report for report in reports}
    has_eval = {"eval.txt", "eval.md5"} <= texts.keys()
    eval_problem = (
        eval_articles_problem(flags.results) if has_eval else "eval.txt or eval.md5 is missing"
    )
    checks.rows.extend(
        dataset_checks.results_rows(reports, flags.own_data, eval_problem, never_made(paths))
    )
    if not flags.own_data:
        checks.rows.extend(published_checks.published_results_rows(reports))
    if md5s:
        checks.rows.extend(published_checks.listed_results_rows(reports, md5s))
    if flags.own_data and file_names.may_lack_the_last(list(texts), ()):
        checks.not_checked.append("--results: whether its last parts are missing: no name says")
    return texts


def never_made(paths: Sequence[str]) -> set[int]:
    """Returns the numbers below 100,000 of the parts that do_gather.py did not make, by the journal
    that it leaves beside its parts; none where there is no journal.
    """
    path = os.path.join(os.path.dirname(paths[0]), ".do_gather.journal")
    if not os.path.isfile(path):
        return set()
    with open(path, encoding="utf-8", errors="replace") as file:
        made = {int(number) for number in re.findall(r"part-(\d{5})-of-\d{5}", file.read())}
    return set(range(100_000)) - made


def unknown_texts(
    flags: argparse.Namespace, texts: Mapping[str, TextReport], known: set[str]
) -> list[str]:
    """known: names of the texts of which a manifest or a list says the contents."""
    unknown = texts.keys() - known
    if not flags.own_data:
        unknown -= published.RESULTS.keys()
    if not unknown:
        return []
    return [
        f"--results: {len(unknown):,} of {len(texts):,} files: swapped, cut between lines, or "
        "changed; --md5_list, or --tfrecord with manifests, would tell"
    ]


def verify_tfrecord(
    flags: argparse.Namespace,
    paths: Sequence[str],
    rules: Rules,
    texts: Mapping[str, TextReport],
    evaluation: TFRecordReport | None,
    checks: Checks,
) -> set[str]:
    """texts: {name: report} of --results. Returns the names of the texts that are those that the
    examples were made of.
    """
    eval_hashes = None if evaluation is None else np.unique(evaluation.hashes)
    inspect = functools.partial(inspect_tfrecord, rules=rules, eval_hashes=eval_hashes)
    reports = inspect_all(inspect, paths, flags.num_workers)
    names = [os.path.basename(path) for path in paths]
    manifests, problems = origin.read_manifests(
        os.path.join(os.path.dirname(paths[0]), MANIFEST_FOLDER)
    )
    row: Row | None
    if os.path.isdir(flags.tfrecord):
        expected = manifests.keys() | {name for name in texts if name.startswith("part-")}
        row = file_names.names_row("tfrecord", names, flags.own_data, written=expected)
        if flags.own_data and file_names.may_lack_the_last(names, expected):
            checks.not_checked.append(
                "--tfrecord: whether its last files are missing: no name, manifest or text says"
            )
    else:
        row = file_names.chosen_files_row("tfrecord", paths)
    checks.add(row)
    checks.rows.extend(dataset_checks.example_rows("tfrecord", reports, rules))
    checks.add(dataset_checks.copies_row("tfrecord", reports))
    row, written = origin.as_written_row("tfrecord", reports, manifests, problems)
    checks.add(row)
    origins = origin.origins_by_headers(reports) | manifests
    row, right_texts = origin.texts_row(
        "tfrecord", {name: texts[name] for name in names if name in texts}, origins
    )
    checks.add(row)
    right_texts |= remake_parts(
        flags, reports, texts, origins, written & right_texts, written, rules, checks
    )
    if any(len(report.sketch) == SKETCH_SIZE for report in reports):
        checks.not_checked.append(
            "--tfrecord: examples in two files are found from 1 % of a file on, by a sample of "
            f"{SKETCH_SIZE:,} of each"
        )
    if evaluation is not None:
        checks.add(dataset_checks.held_out_row(reports, evaluation))
    else:
        checks.not_checked.append(
            "--tfrecord: whether evaluation examples are in it; --eval_10k would tell"
        )
    if not flags.own_data:
        compare_with_published(flags, reports, origins, rules, checks)
    return right_texts


def compare_with_published(
    flags: argparse.Namespace,
    reports: Sequence[TFRecordReport],
    origins: Mapping[str, origin.Origin],
    rules: Rules,
    checks: Checks,
) -> None:
    with open(flags.vocab_file, "rb") as file:
        vocab_md5 = hashlib.md5(file.read()).hexdigest()
    rows = published_checks.published_tfrecord_rows(reports, vocab_md5)
    checks.rows.extend(rows)
    names = {os.path.basename(report.path) for report in reports}
    flags_differ = published_checks.flags_unlike_published(
        [origin.settings for name, origin in origins.items() if name in names]
    )
    if flags_differ or any(row.status == DIFFERS for row in rows):
        causes = published_checks.likely_causes(reports, rules, flags_differ)
        checks.likely_causes.extend(causes)


# --- parts that are made again ---


def remake_parts(
    flags: argparse.Namespace,
    reports: Sequence[TFRecordReport],
    texts: Mapping[str, TextReport],
    origins: Mapping[str, origin.Origin],
    proven: set[str],
    written: set[str],
    rules: Rules,
    checks: Checks,
) -> set[str]:
    """Compares parts with what their texts give, but for those that manifests vouch for. Returns
    the names of those that are equal.

    proven: names of files of which manifests say so, of text and examples; written: of examples.
    """
    by_name = {os.path.basename(report.path): report for report in reports}
    possible = [
        name for name in by_name if name not in proven and name in texts and not texts[name].problem
    ]
    wanted = len(possible) if flags.remake_parts is None else flags.remake_parts
    count = min(wanted, len(possible))
    chosen = [possible[i * len(possible) // count] for i in range(count)]
    jobs = [
        Job(by_name[name], texts[name].path, flags_of_part(flags, origins.get(name)))
        for name in chosen
    ]
    remade = remake_all(jobs, flags, rules) if jobs else []
    if remade:
        row, causes, not_checked = remaking.remade_row(
            "tfrecord", remade, jobs[0].settings._asdict(), set(chosen) <= origins.keys(),
            flags.own_data,
        )  # fmt: skip
        checks.add(row)
        checks.likely_causes.extend(causes)
        checks.not_checked.extend(f"--tfrecord: {text}" for text in not_checked)
    left = by_name.keys() - written - {one.name for one in remade}
    if left:
        checks.not_checked.append(
            f"--tfrecord: {len(left):,} of {len(by_name):,} files: swapped, cut between records, "
            "or records in another order; a manifest, or --results with the text, would tell"
        )
    return {one.name for one in remade if one.is_equal}


def flags_of_part(flags: argparse.Namespace, made: origin.Origin | None) -> Settings:
    """The flags that a part was made with, as its manifest or header or else the command says."""
    given = Settings(**{name: getattr(flags, name) for name in Settings._fields})
    if made is None:
        return given
    return given._replace(**{n: v for n, v in made.settings.items() if n in Settings._fields})


class Job(NamedTuple):
    """A part to make again."""

    found: TFRecordReport
    text: str  # path
    settings: Settings


def remake_all(jobs: Sequence[Job], flags: argparse.Namespace, rules: Rules) -> list[Remade]:
    """Makes parts again; pairs each with the part found; texts without examples are left out."""
    kernels.announce_compilation(instances.instances_of_documents)
    part.compile_kernels(
        FullTokenizer(flags.vocab_file, flags.do_lower_case), jobs[0].settings, "instances"
    )
    work = functools.partial(remake, vocab_file=flags.vocab_file, rules=rules)
    remade, started = [], time.monotonic()
    with ProgressLine() as progress, process_pool(flags.num_workers, len(jobs)) as pool:
        for done, one in enumerate(pool.map(work, jobs), start=1):
            left = time_left(done, len(jobs), time.monotonic() - started)
            progress.show(f"making parts again: {done:,} of {len(jobs):,}, {left}")
            remade += [one] if one else []
    return remade


def remake(job: Job, vocab_file: str, rules: Rules) -> Remade | None:
    """Makes a part again; None if its text gives no examples."""
    found, text, settings = job
    tokenizer = FullTokenizer(
        vocab_file, settings.do_lower_case, preserve_unused_tokens=settings.preserve_unused_tokens
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "part")
        try:
            generate([text], [path], tokenizer, settings, output_format="instances")
        except DataError:
            return None
        return remaking.compared_with(found, inspect_tfrecord(path, rules, keeps_hashes=True))


# --- the evaluation set ---


def verify_eval(
    flags: argparse.Namespace, report: TFRecordReport, rules: Rules, checks: Checks
) -> list[Row]:
    checks.not_checked.append(
        "--eval_10k: whether records are missing, in another order, or not picked from eval.txt"
        if flags.own_data
        else "--eval_10k: features other than input_ids, beyond their sizes"
    )
    rows = dataset_checks.example_rows("evaluation set", [report], rules)
    if flags.own_data:
        return rows
    is_readable = (
        not report.broken_at
        and not report.num_corrupt
        and not any(problem.kind == "features" for problem in report.problems)
    )
    return rows + published_checks.published_eval_rows(
        report, eval_digest(flags.eval_10k) if is_readable else None
    )


def verdict_of(rows: Sequence[Row], own_data: bool) -> str:
    statuses = {row.status for row in rows}
    if FAILED in statuses:
        return "broken"
    if DIFFERS in statuses:
        return "not the published data"
    return "whole" if own_data else "as published"


def sentence(verdict: str, checks: Checks, own_data: bool) -> str:
    rows = checks.rows
    count = {status: sum(row.status == status for row in rows) for status in (FAILED, DIFFERS)}
    hint = (
        "compared with --md5_list, which is not of these files"
        if own_data
        else "for data of your own add --own_data"
    )
    what = "--md5_list says" if own_data else "MLPerf published"
    left = f"; {len(checks.not_checked)} not checked, listed above" if checks.not_checked else ""
    return {
        "broken": f"BROKEN: {count[FAILED]} of {len(rows)} checks failed",
        "not the published data": (
            f"whole, but not what {what} ({count[DIFFERS]} of {len(rows)} lines differ); {hint}"
        ),
        "whole": (
            f"whole: all {len(rows)} checks passed; "
            f"not compared with what MLPerf published (--own_data){left}"
        ),
        "as published": f"whole and as published: all {len(rows)} checks passed{left}",
    }[verdict]


def verify(flags: argparse.Namespace) -> Checks:
    paths, md5s, vocab = check(flags)
    rules = make_rules(
        flags.max_seq_length, flags.max_predictions_per_seq, flags.masked_lm_prob, vocab
    )
    checks, texts, evaluation, known = Checks([], [], []), {}, None, set(md5s)
    if flags.tfrecord or flags.eval_10k:
        compile_kernels(rules)
    if flags.eval_10k:
        evaluation = inspect_tfrecord(flags.eval_10k, rules, keeps_hashes=True)
    if flags.results:
        texts = verify_results(flags, paths["results"], md5s, checks)
    if flags.tfrecord:
        known |= verify_tfrecord(flags, paths["tfrecord"], rules, texts, evaluation, checks)
    checks.not_checked.extend(unknown_texts(flags, texts, known))
    if evaluation is not None:
        checks.rows.extend(verify_eval(flags, evaluation, rules, checks))
    return checks


def main(argv: Sequence[str] | None = None) -> int:
    flags = parse_flags(argv)
    started = time.monotonic()
    checks = verify(flags)
    verdict = verdict_of(checks.rows, flags.own_data)
    seconds = round(time.monotonic() - started, 1)
    if flags.json:
        print(
            check_table.as_json(
                checks.rows,
                verdict=verdict,
                exit_code=EXIT_CODES[verdict],
                likely_causes=checks.likely_causes,
                not_checked=checks.not_checked,
                seconds=seconds,
            )
        )
    else:
        check_table.print_table(checks.rows, not_checked=checks.not_checked)
        for cause in checks.likely_causes:
            print(f"\nlikely cause: {cause}", end="")
        print("\n" if checks.likely_causes else "")
        print(f"{sentence(verdict, checks, flags.own_data)} ({seconds:.1f} s)")
    return EXIT_CODES[verdict]


if __name__ == "__main__":
    cli.run(main)
