#!/usr/bin/env python3
"""TFRecord files -> DALI index files: one line `offset size` a record, as DALI's own tfrecord2idx
prints them.

python3 make_idx.py --tfrecord_train="path/to/train_tfrecords" \\
    --tfrecord_eval="path/to/eval_tfrecords" --output_idx="path/to/output_idx"

Writes path/to/output_idx/train/<name>.idx and path/to/output_idx/eval/<name>.idx. Reads the record
headers and checks their checksums; a truncated file, or one that is no TFRecord, is reported with
the byte offset, gets no index, and does not stop the others. Corrupt data inside a record are not
noticed here.
"""

import argparse
import os
import time
from collections.abc import Sequence

from bert.common import cli
from bert.common.files import DataError, FlagError, raise_if_any
from bert.common.path_flags import folder_problems, list_folder_or_pattern
from bert.common.processes import run_for_files
from bert.examples.instance_file import is_instance_file
from bert.examples.tfrecord import write_index


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    add(
        "--tfrecord_train",
        help="training TFRecords: a folder, a glob pattern or a file; leave out for none",
    )
    add("--tfrecord_eval", help="evaluation TFRecords, in the same form")
    add("--output_idx", required=True, help="folder for the indexes, made if needed")
    add(
        "--num_workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="files read at the same time (default: all %(default)s cores)",
    )
    return parser.parse_args(argv)


def plan(flags: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns [(TFRecord path, index path)]; FlagError with everything that is wrong."""
    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    for split, where in (("train", flags.tfrecord_train), ("eval", flags.tfrecord_eval)):
        if where is None:
            continue
        try:
            paths = list_folder_or_pattern(where)
        except DataError as error:
            problems.append(f"--tfrecord_{split}: {error}")
            continue
        if instances := [path for path in paths if is_instance_file(path)]:
            problems.append(
                f"--tfrecord_{split}: {instances[0]} is an instance file, which needs no index: "
                "the loader and train.py read it as it is"
            )
        folder = os.path.join(flags.output_idx, split)
        pairs += [(path, os.path.join(folder, f"{os.path.basename(path)}.idx")) for path in paths]
    if flags.tfrecord_train is None and flags.tfrecord_eval is None:
        problems.append("neither --tfrecord_train nor --tfrecord_eval: nothing to index")
    if flags.num_workers < 1:
        problems.append(f"--num_workers={flags.num_workers}: expected 1 or more")
    source: dict[str, str] = {}
    for path, index_path in pairs:
        if index_path in source:
            problems.append(
                f"{source[index_path]} and {path} would share the index {index_path}; "
                "index them in two calls"
            )
        source[index_path] = path
    data_folders = {os.path.realpath(os.path.dirname(path)) for path, _ in pairs}
    for folder in sorted({os.path.dirname(index_path) for _, index_path in pairs}):
        problems += [f"--output_idx: {problem}" for problem in folder_problems(folder)]
        if os.path.realpath(folder) in data_folders:
            problems.append(
                f"--output_idx: {folder} is a folder of TFRecord files, which would then be read "
                "with the indexes; give another"
            )
    raise_if_any(problems, FlagError)
    return pairs


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    started = time.monotonic()
    pairs = plan(flags)
    for folder in {os.path.dirname(index_path) for _, index_path in pairs}:
        os.makedirs(folder, exist_ok=True)
    counts, problems = run_for_files(
        write_index, {pair[0]: pair for pair in pairs}, flags.num_workers,
        lambda counts, seconds: f"{sum(counts) / seconds:,.0f} records/s",
    )  # fmt: skip
    print(
        f"indexed {len(counts):,} of {len(pairs):,} files, {sum(counts):,} records "
        f"in {flags.output_idx} ({time.monotonic() - started:.1f} s)"
    )
    raise_if_any(problems)


if __name__ == "__main__":
    cli.run(main)
