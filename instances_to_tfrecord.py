#!/usr/bin/env python3
"""Instance files -> TFRecord files, the bytes that create_pretraining_data.py makes of the texts.

python3 instances_to_tfrecord.py --instances=instances --output_dir=tfrecord

For other programs, and for comparing with what MLPerf published; bert_dali_dataloader.py and
train.py read instance files themselves. Writes tfrecord/<name> for each file <name>, about 1.5
seconds each on one core. A file that is there already with the right size is left as it is, so the
same command resumes; one of another size is never replaced. A corrupt instance file is named and
stops no other.
"""

import argparse
import os
import time

from bert.common import cli
from bert.common.files import DataError, FlagError, atomic_writer, raise_if_any
from bert.common.path_flags import list_folder_or_pattern, output_problems
from bert.common.processes import run_for_files
from bert.examples.encoding import encode_records
from bert.examples.instance_file import InstanceFile, is_instance_file


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    add("--instances", required=True, help="the instance files: a folder, a pattern or a file")
    add("--output_dir", required=True, help="folder for the TFRecord files, made if needed")
    add(
        "--num_workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="files made at the same time (default: all %(default)s cores)",
    )
    return parser.parse_args(argv)


def plan(flags: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns [(instance file, TFRecord file)]; FlagError with everything that is wrong."""
    paths, problems = [], []
    try:
        paths = list_folder_or_pattern(flags.instances)
    except DataError as error:
        problems.append(f"--instances: {error}")
    problems += [
        f"--instances: {path} is not an instance file"
        for path in paths
        if not is_instance_file(path)
    ]
    pairs = [(path, os.path.join(flags.output_dir, os.path.basename(path))) for path in paths]
    outputs = [output for _, output in pairs]
    if len(set(outputs)) < len(outputs):
        problems.append("--instances: two files of the same name; convert them in two calls")
    problems += [
        f"--output_dir: {problem}"
        for _, output in pairs[:1]
        for problem in output_problems(output, *paths)
    ]
    if flags.num_workers < 1:
        problems.append(f"--num_workers={flags.num_workers}: expected 1 or more")
    raise_if_any(problems, FlagError)
    return pairs


def convert(path: str, output: str) -> tuple[int, int]:
    """Writes the TFRecord file of an instance file, unless it is there; returns its records and
    bytes.
    """
    file = InstanceFile(path)
    header = file.header
    if os.path.exists(output):
        if (found := os.path.getsize(output)) != header.tfrecord_bytes:
            raise DataError(
                f"{output}: there is a file of {found:,} bytes, the TFRecords of {path} have "
                f"{header.tfrecord_bytes:,}: move it away, or give another --output_dir"
            )
    else:
        file.check_contents()
        with atomic_writer(output) as records:
            for data, _ in encode_records(
                file.instances, header.special_ids, header.max_seq_length,
                header.max_predictions_per_seq,
            ):  # fmt: skip
                records.write(data)
        file.check_unchanged()
    return file.num_records, header.tfrecord_bytes


def main(argv: list[str] | None = None) -> None:
    flags = parse_flags(argv)
    started = time.monotonic()
    pairs = plan(flags)
    os.makedirs(flags.output_dir, exist_ok=True)
    made, problems = run_for_files(
        convert, {pair[0]: pair for pair in pairs}, flags.num_workers,
        lambda made, seconds: f"{sum(size for _, size in made) / seconds / 1e6:,.0f} MB/s",
    )  # fmt: skip
    num_records, num_bytes = (sum(column) for column in zip(*made)) if made else (0, 0)
    print(
        f"wrote {len(made):,} of {len(pairs):,} files, {num_records:,} records, "
        f"{num_bytes:,} bytes in {flags.output_dir} ({time.monotonic() - started:.1f} s)"
    )
    raise_if_any(problems)


if __name__ == "__main__":
    cli.run(main)
