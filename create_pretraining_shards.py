#!/usr/bin/env python3
"""All text files -> all files of examples, by all cores of this machine or of a Ray cluster. Killed
or stopped, it resumes where it stopped.

python3 create_pretraining_shards.py --input_dir=results --output_dir=tfrecord \\
    --vocab_file=vocab.txt --do_lower_case=True --max_seq_length=512 --max_predictions_per_seq=76 \\
    --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=10

Writes for every results/part-* the file tfrecord/part-*, the same bytes as
create_pretraining_data.py does, and a manifest tfrecord/.manifest/part-*.json: text, vocabulary,
flags and output, by size and CRC32C. A second call makes what is missing. A part that was made of
another text, vocabulary or flags is replaced with --overwrite only. A part that fails is named at
the end and stops no other. With --output_format=instances: instance files, an eighth of the size.
Takes 2 seconds and 300 MB of memory for a part of 27 MB on one core, and 5 seconds for Ray to start
and end. --dry_run estimates all of this for your text and machine, and makes nothing.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from bert.common import cli
from bert.common.files import DataError, FlagError, is_remote, raise_if_any, size_of
from bert.common.path_flags import list_folder_or_pattern, nearest_existing, output_problems
from bert.common.progress import ProgressLine, time_left
from bert.generation import ray_pool, shards
from bert.generation.estimate import Estimate, estimate, make_sample
from bert.generation.part import compile_kernels
from bert.generation.shards import Recipe, Shard, Status
from create_pretraining_data import (
    add_data_flags,
    announce_compilation,
    available_memory,
    check_data_flags,
    check_memory,
    read_problems,
    settings_of,
    warn_of_vocabulary,
)
from tokenization import FullTokenizer


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument_group("files").add_argument
    add(
        "--input_dir",
        required=True,
        help="the texts: a folder, of which every part-* is taken, or a quoted pattern",
    )
    add(
        "--output_dir",
        required=True,
        help="folder for the files of examples, made if its parent exists",
    )
    add(
        "--check",
        action="store_true",
        help=(
            "make nothing: read all outputs and compare them with their manifests; "
            "exit code 1 if one is missing or differs"
        ),
    )
    add(
        "--dry_run",
        action="store_true",
        help=(
            "make nothing: estimate bytes, memory and minutes from one part, made in a temporary "
            "folder ($TMPDIR); exit code 1 if the disk of --output_dir has no room for the rest"
        ),
    )
    add(
        "--overwrite",
        action="store_true",
        help=(
            "make again, and so replace, parts that differ from what this command makes: of "
            "another text, vocabulary or flags, corrupt (all are read), or of another command"
        ),
    )
    add = parser.add_argument_group("workers").add_argument
    add(
        "--num_workers",
        type=int,
        help=(
            "parts made at the same time, 300 MB of memory each; "
            "not given: all cores, of this machine or of the cluster"
        ),
    )
    add(
        "--ray_address",
        help=(
            "a running Ray cluster: host:port, or auto. Every machine of it needs this folder, the "
            "texts, the vocabulary and --output_dir under the same paths (shared storage). Not "
            "given: this machine alone"
        ),
    )
    add_data_flags(parser)
    return parser.parse_args(argv)


# --------------------------------------------------------------------------------------------------
# Before any work


def check_flags(flags: argparse.Namespace) -> tuple[list[Shard], FullTokenizer]:
    """Returns (list of `Shard`, tokenizer); FlagError with everything that is wrong."""
    inputs = []
    tokenizer, problems = check_data_flags(flags)
    try:
        inputs = list_folder_or_pattern(flags.input_dir, prefix="part-")
    except (DataError, OSError) as error:
        problems.append(f"--input_dir: {error}")
    problems += [f"--input_dir: {problem}" for problem in read_problems(inputs)]
    if flags.check and flags.overwrite:
        problems.append("--check makes nothing, --overwrite replaces parts; give one of them")
    if flags.check and flags.dry_run:
        problems.append("--check reads the outputs, --dry_run estimates them; give one of them")
    if flags.num_workers is not None and flags.num_workers < 1:
        problems.append(f"--num_workers={flags.num_workers}: expected 1 or more")
    if flags.ray_address is not None:
        problems += [
            f"--ray_address: {problem}" for problem in ray_pool.address_problems(flags.ray_address)
        ]
    output_dir = absolute(flags.output_dir)
    plan = [Shard(absolute(path), f"{output_dir}/{os.path.basename(path)}") for path in inputs]
    names = collections.Counter(shard.name for shard in plan)
    problems += [
        f"--input_dir: {count} texts are named {name}" for name, count in names.items() if count > 1
    ]
    if output_dir in {absolute(os.path.dirname(shard.input)) for shard in plan}:
        problems.append(
            f"--output_dir: {flags.output_dir} is the folder of the texts, "
            "which would be overwritten; give another"
        )
    elif plan:
        problems += [f"--output_dir: {problem}" for problem in output_problems(plan[0].output)]
    raise_if_any(problems, FlagError)
    assert tokenizer  # else there is a problem
    if not flags.ray_address:
        check_memory(flags, max(size_of(shard.input) or 0 for shard in plan))
    return plan, tokenizer


def absolute(path: str) -> str:
    """The path that means the same from every folder and on every machine; links followed."""
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


@contextlib.contextmanager
def lock_output_dir(output_dir: str) -> Iterator[None]:
    """Keeps out other runs, which would take this one's temporary files for left-overs.

    DataError if one is at work.
    """
    try:
        with shards.lock_of_run(output_dir):
            yield
    except BlockingIOError:
        raise DataError(
            f"--output_dir: another run is working on {output_dir}; wait for it or end it"
        ) from None


def look(plan: list[Shard], recipe: Recipe, num_threads: int, reads_output: bool) -> list[Status]:
    """Returns the `shards.Status` of every shard, in order."""
    started = time.monotonic()
    verb = "checking" if reads_output else "looking at"
    statuses = []
    with ProgressLine() as progress, concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        jobs = [
            pool.submit(shards.status, shard, recipe, reads_output=reads_output) for shard in plan
        ]
        try:
            for done, job in enumerate(jobs, start=1):
                statuses.append(job.result())
                progress.show(
                    f"{verb} parts: {done} of {len(plan)}, "
                    f"{time_left(done, len(plan), time.monotonic() - started)}"
                )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return statuses


def announce(
    plan: list[Shard], statuses: list[Status], overwrite: bool, words: str = "made again"
) -> None:
    """Reports which parts will be made again and why; parts with the same reason together.

    DataError if this replaces files, and `overwrite` is not given.
    """
    names = collections.defaultdict(list)
    for shard, status in zip(plan, statuses):
        if status.problem:
            names[status.problem].append(shard.name)
    reasons = [f"{first_of(some)}: {problem}" for problem, some in names.items()]
    if any(status.replaces for status in statuses) and not overwrite:
        raise_if_any([
            "--output_dir: finished parts differ from what this command makes:",
            *reasons,
            "nothing was made; --overwrite makes them again, another --output_dir keeps them",
        ])  # fmt: skip
    for reason in reasons:
        print(f"{words}: {reason}", file=sys.stderr)


def announce_unexpected_files(output_dir: str, plan: list[Shard]) -> None:
    if names := shards.unexpected_files(output_dir, plan):
        print(
            (
                f"warning: {output_dir} also holds {first_of(names)}, of none of these texts: "
                "move what is not wanted"
            ),
            file=sys.stderr,
        )


def first_of(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --------------------------------------------------------------------------------------------------
# Work


def make_all(
    plan: list[Shard], recipe: Recipe, flags: argparse.Namespace
) -> list[ray_pool.Outcome]:
    """Makes the shards; returns their outcomes.

    One line of progress: parts, bytes of records a second, time left.
    """
    outcomes, done, written = [], 0, 0
    sizes = {shard: size_of(shard.input) or 0 for shard in plan}
    total = max(1, sum(sizes.values()))
    with ProgressLine() as progress:
        progress.show("starting Ray")
        with ray_pool.started(flags.ray_address, flags.num_workers) as num_workers:
            started = time.monotonic()
            for outcome in ray_pool.run(shards.make, plan, recipe, num_at_a_time=num_workers):
                if outcome:
                    outcomes.append(outcome)
                    done += sizes[outcome.item]
                    written += outcome.result["output"]["bytes"] if outcome.result else 0
                seconds = time.monotonic() - started
                progress.show(
                    (
                        f"parts: {len(outcomes)} of {len(plan)} done, "
                        f"{min(num_workers, len(plan) - len(outcomes))} in work"
                    )
                    + (
                        f", {written / seconds / 1e6:,.0f} MB/s, {time_left(done, total, seconds)}"
                        if done
                        else ""
                    )
                )
    return outcomes


# --------------------------------------------------------------------------------------------------
# Instead of it


def dry_run(
    plan: list[Shard], recipe: Recipe, tokenizer: FullTokenizer, flags: argparse.Namespace
) -> None:
    """--dry_run: prints what making the missing parts takes; DataError if the disk has no room."""
    num_workers = flags.num_workers or len(os.sched_getaffinity(0))
    statuses = look(plan, recipe, num_workers, reads_output=flags.overwrite)
    announce(plan, statuses, flags.overwrite, "would be made again")
    missing = [shard for shard, status in zip(plan, statuses) if not status.manifest]
    if not missing:
        print(f"nothing to make: all {len(plan):,} parts are made already")
        return
    sizes = [size_of(shard.input) or 0 for shard in missing]
    middle = missing[len(missing) // 2]
    announce_compilation()
    compile_kernels(tokenizer, recipe.settings, recipe.output_format)
    with ProgressLine() as progress:
        progress.show(f"making {middle.name} as a sample")
        sample = make_sample(middle, recipe)
    whole = estimate(sample, sizes, num_workers)
    free = None
    if not is_remote(flags.output_dir):
        free = shutil.disk_usage(nearest_existing(flags.output_dir)).free
    minutes = f"{whole.seconds / 60:,.1f} minutes" if whole.seconds > 60 else "less than a minute"
    made = f"{sample.records:,} records, {gigabytes(sample.bytes)}, {sample.seconds:.1f} s"
    print_rows([
        ("sample", f"{sample.name}: {gigabytes(sample.text_bytes)} of text -> {made}"),
        ("parts", f"{len(missing):,} to make, {len(plan) - len(missing):,} made already"),
        ("text", gigabytes(sum(sizes))),
        ("bytes", f"{gigabytes(whole.bytes)}, as {flags.output_format}"),
        ("disk", "not known of an object store" if free is None else f"{gigabytes(free)} free"),
        ("memory", memory_in_words(whole)),
        ("time", f"{minutes}, and some seconds for Ray to start and end"),
    ])  # fmt: skip
    print(
        "an estimate: the other parts are taken as the sample, by bytes of text; nothing was made"
    )
    # A part that is made again takes the place of its old file.
    needed = whole.bytes - sum(size_of(shard.output) or 0 for shard in missing)
    if free is not None and needed > free:
        raise_no_room(flags, needed, free)


def memory_in_words(whole: Estimate) -> str:
    """Returns how much memory the workers take, and how many of them have room here."""
    needed, available = whole.num_workers * whole.worker_bytes, available_memory()
    fitting = max(1, int(available // whole.worker_bytes))
    return (
        f"{gigabytes(needed)}: {whole.num_workers:,} at a time x "
        f"{gigabytes(whole.worker_bytes)}; {gigabytes(available)} available here"
        + (f": --num_workers={fitting} fits" if needed > available else "")
    )


def raise_no_room(flags: argparse.Namespace, needed: int, free: int) -> NoReturn:
    is_larger = flags.output_format == "tfrecord"
    raise DataError(
        f"--output_dir: {flags.output_dir}: about {gigabytes(needed)} are needed, "
        f"{gigabytes(free)} are free: free some space, choose another disk"
        + (", or take --output_format=instances, an eighth of the size" if is_larger else "")
    )


def gigabytes(size: float) -> str:
    megabytes = f"{cli.three_digits(size / 1e6)} MB"
    return f"{cli.three_digits(size / 1e9)} GB" if size >= 1e8 else megabytes


# --------------------------------------------------------------------------------------------------
# After it


def print_summary(
    plan: list[Shard], skipped: list[dict], outcomes: list[ray_pool.Outcome], seconds: float
) -> None:
    """skipped: manifests of the parts that were done already."""
    made = [outcome for outcome in outcomes if outcome.result]
    outputs = [manifest["output"] for manifest in skipped + [outcome.result for outcome in made]]
    rows = [
        (
            "parts",
            (
                f"{len(plan):,}: {len(made):,} made, {len(skipped):,} skipped, "
                f"{len(outcomes) - len(made):,} failed"
            ),
        ),
        ("documents", f"{sum(output['documents'] for output in outputs):,}"),
        ("records", f"{sum(output['records'] for output in outputs):,}"),
        ("bytes", f"{sum(output['bytes'] for output in outputs):,}"),
    ]
    if made:
        costs = {outcome.item.name: outcome.result["cost"] for outcome in made}
        longest = max(costs, key=lambda name: costs[name]["wall_seconds"])
        rows += [
            ("longest part", f"{longest}: {costs[longest]['wall_seconds']:.1f} s"),
            (
                "CPU a part",
                f"{sum(cost['cpu_seconds'] for cost in costs.values()) / len(costs):.1f} s",
            ),
            (
                "peak memory",
                (
                    f"{max(cost['peak_megabytes'] for cost in costs.values()):,} MB "
                    "of the largest process"
                ),
            ),
        ]
    rows.append(("time", f"{seconds:.1f} s"))
    print_rows(rows)


def print_rows(rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<14}{value}")


def check_outputs(plan: list[Shard], recipe: Recipe, num_threads: int) -> None:
    """--check: DataError that names every part that is missing or differs."""
    statuses = look(plan, recipe, num_threads, reads_output=True)
    good = [status.manifest for status in statuses if status.manifest]
    print(
        f"{len(good):,} of {len(plan):,} parts are whole: "
        f"{sum(manifest['output']['records'] for manifest in good):,} records"
    )
    problems = [
        f"{shard.output}: {status.problem or 'not made yet'}"
        for shard, status in zip(plan, statuses)
        if not status.manifest
    ]
    flag = " but --overwrite" if any(status.replaces for status in statuses) else ""
    raise_if_any(
        problems + [f"make them with the same command without --check{flag}"] if problems else []
    )


def main(argv: list[str] | None = None) -> None:
    flags = parse_flags(argv)
    started = time.monotonic()
    plan, tokenizer = check_flags(flags)
    warn_of_vocabulary(flags)
    recipe = Recipe(
        settings_of(flags),
        absolute(flags.vocab_file),
        shards.fingerprint(flags.vocab_file),
        flags.output_format,
    )
    num_threads = flags.num_workers or len(os.sched_getaffinity(0))
    output_dir = absolute(flags.output_dir)
    announce_unexpected_files(output_dir, plan)
    if flags.check:
        return check_outputs(plan, recipe, num_threads)
    if flags.dry_run:
        return dry_run(plan, recipe, tokenizer, flags)
    with lock_output_dir(output_dir):
        shards.remove_leftovers(output_dir, plan)
        statuses = look(plan, recipe, num_threads, reads_output=flags.overwrite)
        announce(plan, statuses, flags.overwrite)
        missing = [shard for shard, status in zip(plan, statuses) if not status.manifest]
        outcomes = []
        if missing:
            announce_compilation()
            compile_kernels(
                tokenizer, recipe.settings, recipe.output_format
            )  # once, and not in every process
            try:
                outcomes = make_all(missing, recipe, flags)
            finally:
                shards.remove_leftovers(output_dir, missing)
    print_summary(
        plan,
        [status.manifest for status in statuses if status.manifest],
        outcomes,
        time.monotonic() - started,
    )
    for outcome in outcomes:
        for note in (outcome.result or {}).get("notes", []):
            print(f"warning: {note}", file=sys.stderr)
    raise_if_any(
        [f"{outcome.item.input}: {outcome.error}" for outcome in outcomes if outcome.error]
    )


if __name__ == "__main__":
    cli.run(main)
