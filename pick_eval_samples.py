#!/usr/bin/env python3
"""A file of examples -> a smaller one with some picked at even distances: MLPerf's evaluation set.

python3 pick_eval_samples.py --input_tfrecord=eval_intermediate --output_tfrecord=eval_10k \\
    --num_examples_to_pick=10000

Of N records, record int(i * (N / K)) is copied for i = 0 .. K-1. Each picked record is checked
(checksums, the seven features, their lengths) and copied as it is. Memory does not grow with the
file. An instance file may be given too, and with --output_format=instances be written.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

from bert.common import cli  # first: it says what to do where packages are missing

# isort: split
import numpy as np

from bert.common.files import DataError, FlagError, atomic_writer, make_parent_folder, raise_if_any
from bert.common.path_flags import input_problem, nearest_existing, output_problems
from bert.examples.encoding import encode_records
from bert.examples.example import check_lengths, decode_example
from bert.examples.example_file import open_examples
from bert.examples.instance_file import InstanceFile, instance_file_blocks, is_instance_file
from bert.examples.instances import InstanceBuffer
from bert.examples.tfrecord import TFRecordFile, frame


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    add(
        "--input_tfrecord",
        required=True,
        help="the file to pick from, of either format, written by create_pretraining_data.py",
    )
    add("--output_tfrecord", required=True, help="the file to write")
    add(
        "--num_examples_to_pick",
        type=int,
        default=10000,
        help="K; if larger than N, records repeat (default: %(default)s)",
    )
    add(
        "--max_seq_length",
        type=int,
        default=512,
        help="expected of every picked example (default: %(default)s)",
    )
    add("--max_predictions_per_seq", type=int, default=76, help="as above (default: %(default)s)")
    add(
        "--output_format",
        choices=("tfrecord", "instances"),
        default="tfrecord",
        help="instances: needs an instance file as input (default: %(default)s)",
    )
    return parser.parse_args(argv)


def check(flags: argparse.Namespace) -> None:
    problems = []
    for name in ("num_examples_to_pick", "max_seq_length", "max_predictions_per_seq"):
        if getattr(flags, name) < 1:
            problems.append(f"--{name}={getattr(flags, name)}: expected 1 or more")
    if not os.path.isfile(flags.input_tfrecord):
        problem = input_problem(flags.input_tfrecord) or f"{flags.input_tfrecord}: no such file"
        problems.append(f"--input_tfrecord: {problem}")
    elif flags.output_format == "instances" and not is_instance_file(flags.input_tfrecord):
        problems.append(
            f"--output_format=instances: {flags.input_tfrecord} is no instance file; give one, or "
            "leave the flag out"
        )
    problems += [
        f"--output_tfrecord: {problem}"
        for problem in output_problems(flags.output_tfrecord, flags.input_tfrecord)
    ]
    raise_if_any(problems, FlagError)


def check_number(flags: argparse.Namespace, num_examples: int) -> None:
    """Says if examples will repeat; DataError if the disk has no room for so many."""
    number = flags.num_examples_to_pick
    mean_bytes = os.path.getsize(flags.input_tfrecord) / max(1, num_examples)
    folder = os.path.dirname(os.path.realpath(flags.output_tfrecord))
    free = shutil.disk_usage(nearest_existing(folder)).free
    if number * mean_bytes > free:
        raise DataError(
            f"--num_examples_to_pick={number}: about {number * mean_bytes / 1e9:,.1f} GB, but "
            f"{folder} has {free / 1e9:,.1f} GB free; pick fewer: {flags.input_tfrecord} has "
            f"{num_examples:,}"
        )
    if number > num_examples:
        print(
            f"note: {flags.input_tfrecord} has {num_examples:,} records, fewer than "
            f"--num_examples_to_pick={number}: each is picked "
            f"{number // max(1, num_examples)} times or once more",
            file=sys.stderr,
        )


def picked(num_examples: int, num_to_pick: int) -> Iterator[int]:
    """Yields int(i * (N / K)) for i = 0 .. K-1, which ascend."""
    for i in range(num_to_pick):
        yield int(i * (num_examples / num_to_pick))


def pick_records(flags: argparse.Namespace, num_examples: int) -> Iterator[bytes]:
    """Yields the picked records of a TFRecord file."""
    with TFRecordFile(flags.input_tfrecord) as records:
        extents = enumerate(records.extents())
        number, (offset, size) = next(extents)
        for wanted in picked(num_examples, flags.num_examples_to_pick):
            while number < wanted:
                number, (offset, size) = next(extents)
            place = f"{flags.input_tfrecord}: record {number} at byte {offset}"
            payload = records.payload(offset, size)
            check_shape(flags, decode_example(payload, place), place)
            yield frame(payload)


def pick_instances(flags: argparse.Namespace, num_examples: int) -> Iterator[bytes | memoryview]:
    """Yields the picked examples of an instance file as the contents of a file of either format."""
    file = InstanceFile(flags.input_tfrecord)
    file.check_contents()
    numbers = np.array(list(picked(num_examples, flags.num_examples_to_pick)))
    example = {name: rows[0] for name, rows in file.batch(numbers[:1]).items()}
    check_shape(flags, example, file.place(0))
    shape = (file.header.max_seq_length, file.header.max_predictions_per_seq)
    buffer = InstanceBuffer(len(numbers), *shape)
    file.copy_to(buffer, numbers)
    if flags.output_format == "instances":
        made_of = json.loads(file.header.made_of) | {"picked": len(numbers), "of": num_examples}
        header = file.header._replace(made_of=json.dumps(made_of))
        yield from instance_file_blocks(buffer.instances(), np.arange(len(numbers)), header)
    else:
        for records, _ in encode_records(buffer.instances(), file.header.special_ids, *shape):
            yield records


def check_shape(flags: argparse.Namespace, example: dict[str, np.ndarray], place: str) -> None:
    check_lengths(example, flags.max_seq_length, flags.max_predictions_per_seq, place)


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    started = time.monotonic()
    check(flags)
    num_examples = open_examples(flags.input_tfrecord).count()
    check_number(flags, num_examples)
    pick = pick_instances if is_instance_file(flags.input_tfrecord) else pick_records
    make_parent_folder(flags.output_tfrecord)
    with atomic_writer(flags.output_tfrecord) as output:
        written = sum(output.write(data) for data in pick(flags, num_examples))
    print(
        f"picked {flags.num_examples_to_pick:,} of {num_examples:,} records, {written:,} bytes in "
        f"{flags.output_tfrecord} ({time.monotonic() - started:.1f} s)"
    )


if __name__ == "__main__":
    cli.run(main)
