#!/usr/bin/env python3
"""A TFRecord file -> a smaller one with examples picked at even distances: MLPerf's evaluation set.

python3 pick_eval_samples.py --input_tfrecord=eval_intermediate --output_tfrecord=eval_10k \\
    --num_examples_to_pick=10000

Of N records, record int(i * (N / K)) is copied for i = 0 .. K-1. Each picked record is checked
(checksums, the seven features, their lengths) and copied as it is. Memory does not grow with the
file.
"""

import argparse
import contextlib
import os
import time
from collections.abc import Iterator, Sequence

from bert.common import cli
from bert.common.files import atomic_writer, make_parent_folder, output_problems, raise_if_any
from bert.examples.example import check_lengths, decode_example
from bert.examples.tfrecord import TFRecordFile, frame


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    add(
        "--input_tfrecord",
        required=True,
        help="the file to pick from, written by create_pretraining_data.py",
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
    return parser.parse_args(argv)


def check(flags: argparse.Namespace) -> None:
    problems = []
    for name in ("num_examples_to_pick", "max_seq_length", "max_predictions_per_seq"):
        if getattr(flags, name) < 1:
            problems.append(f"--{name}={getattr(flags, name)}: expected 1 or more")
    if not os.path.isfile(flags.input_tfrecord):
        problems.append(f"--input_tfrecord: {flags.input_tfrecord}: no such file")
    problems += [
        f"--output_tfrecord: {problem}"
        for problem in output_problems(flags.output_tfrecord, flags.input_tfrecord)
    ]
    raise_if_any(problems)


def picked_extents(
    records: TFRecordFile, num_examples: int, num_to_pick: int
) -> Iterator[tuple[int, int, int]]:
    """Yields (number, offset, size) of record int(i * (N / K)) for i = 0 .. K-1.

    The numbers ascend, so one pass over the file is enough.
    """
    extents = enumerate(records.extents())
    number, extent = next(extents)
    for i in range(num_to_pick):
        wanted = int(i * (num_examples / num_to_pick))
        while number < wanted:
            number, extent = next(extents)
        yield number, *extent


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    started = time.monotonic()
    check(flags)
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(TFRecordFile(flags.input_tfrecord))
        num_examples = sum(1 for _ in records.extents())
        make_parent_folder(flags.output_tfrecord)
        output = stack.enter_context(atomic_writer(flags.output_tfrecord))
        written = 0
        for number, offset, size in picked_extents(
            records, num_examples, flags.num_examples_to_pick
        ):
            place = f"{flags.input_tfrecord}: record {number} at byte {offset}"
            payload = records.payload(offset, size)
            check_lengths(
                decode_example(payload, place),
                flags.max_seq_length,
                flags.max_predictions_per_seq,
                place,
            )
            written += output.write(frame(payload))
    print(
        f"picked {flags.num_examples_to_pick:,} of {num_examples:,} records, {written:,} bytes in "
        f"{flags.output_tfrecord} ({time.monotonic() - started:.1f} s)"
    )


if __name__ == "__main__":
    cli.run(main)
