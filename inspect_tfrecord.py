#!/usr/bin/env python3
"""Shows TFRecord or instance files: an example as words, or statistics of files, as text or as a
picture.

python3 inspect_tfrecord.py tfrecord/part-00000-of-00500                  # the first example
python3 inspect_tfrecord.py tfrecord/part-00000-of-00500 --record=1000 --count=3
python3 inspect_tfrecord.py tfrecord --stats --plot=tfrecord.png          # or a pattern, or a file

In an example, {[MASK]: right} and {wrong: right} are pieces that were replaced; {=right} is one
that the model must predict but sees. Statistics read every record of the files and verify its
checksums: about 30,000 records per second and core. Writes only the picture that --plot names.
"""

import argparse
import concurrent.futures
import os
import time
from collections.abc import Sequence

from bert.common import cli  # first: it says what to do where packages are missing

# isort: split
import numpy as np

from bert.common.files import DataError, FlagError, atomic_writer, make_parent_folder, raise_if_any
from bert.common.path_flags import list_folder_or_pattern, output_problems
from bert.common.processes import process_pool
from bert.common.progress import ProgressLine, time_left
from bert.examples.display import example_words
from bert.examples.example import check_values
from bert.examples.example_file import open_examples
from bert.examples.statistics import Census, take_census
from tokenization import load_vocab

_MOST_FREQUENT = 20


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    add(
        "tfrecord", help="a TFRecord or instance file; with --stats also a folder or a glob pattern"
    )
    add(
        "--vocab_file",
        default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "vocab.txt"),
        help="(default: vocab.txt)",
    )
    add(
        "--record",
        type=int,
        default=0,
        help="number of the first example shown, from 0 (default: %(default)s)",
    )
    add("--count", type=int, default=1, help="examples shown (default: %(default)s)")
    cli.add_boolean_flag(parser, "stats", False, "statistics of all records instead of examples")
    add("--plot", metavar="PNG", help="the statistics as a picture in this file; means --stats")
    cores = len(os.sched_getaffinity(0))
    add(
        "--num_workers",
        type=int,
        default=cores,
        help="files read at the same time (default: all %(default)s cores)",
    )
    flags = parser.parse_args(argv)
    flags.stats = flags.stats or flags.plot is not None
    return flags


def check(flags: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Returns the files and the vocabulary's tokens by id; FlagError lists all that is wrong."""
    paths: list[str] = []
    vocab: dict[str, int] = {}
    problems: list[str] = []
    try:
        paths = list_folder_or_pattern(flags.tfrecord)
    except DataError as error:
        problems.append(str(error))
    if not flags.stats and len(paths) > 1:
        problems.append(
            f"{flags.tfrecord}: {len(paths)} files; "
            "give one of them, or add --stats for statistics of all"
        )
    try:
        vocab = load_vocab(flags.vocab_file)
    except (OSError, ValueError) as error:
        problems.append(f"--vocab_file: {error}")
    if vocab and "[MASK]" not in vocab:
        problems.append(
            f"--vocab_file: {flags.vocab_file}: has no [MASK]; is this a BERT vocabulary?"
        )
    for name, least in (("record", 0), ("count", 1), ("num_workers", 1)):
        if getattr(flags, name) < least:
            problems.append(f"--{name}={getattr(flags, name)}: expected {least} or more")
    if flags.plot is not None:
        problems += [
            f"--plot: {problem}"
            for problem in output_problems(flags.plot, *paths, flags.vocab_file)
        ]
    raise_if_any(problems, FlagError)
    return paths, list(vocab)


def show_examples(path: str, pieces: list[str], first: int, count: int) -> None:
    """Prints examples number `first` to `first + count - 1`; DataError if the file has fewer."""
    file, shown = open_examples(path), 0
    for place, example in file.examples(first, count):
        check_values(example, file.lengths, len(pieces), place)
        print(f"{place}\n{example_words(example, pieces)}\n")
        shown += 1
    if shown < count:
        total = file.count()
        raise DataError(
            f"{path}: {total} records, 0 to {total - 1}; "
            f"--record={first} --count={count} is past the end"
        )


def census_of_file(path: str, lengths: dict[str, int], pieces: Sequence[str]) -> Census:
    """Returns the Census of a file; DataError if a record is corrupt or has other lengths."""
    mask_id = pieces.index("[MASK]")
    total: Census | None = None
    for batch in open_examples(path).batches(lengths, len(pieces)):
        census = take_census(batch, len(pieces), mask_id)
        total = census if total is None else total + census
    assert total is not None  # an empty file is an error of TFRecordFile
    return total


def census_of_files(paths: Sequence[str], pieces: Sequence[str], num_workers: int) -> Census:
    """Returns the Census of all files, each read in a process of its own."""
    lengths, started = open_examples(paths[0]).lengths, time.monotonic()
    total: Census | None = None
    with ProgressLine() as progress, process_pool(num_workers, len(paths)) as pool:
        jobs = [pool.submit(census_of_file, path, lengths, pieces) for path in paths]
        for done, job in enumerate(concurrent.futures.as_completed(jobs), start=1):
            total = job.result() if total is None else total + job.result()
            seconds = time.monotonic() - started
            rate = f"{total.records / seconds:,.0f} records/s"
            progress.show(
                f"{done:,} of {len(paths):,} files, {rate}, {time_left(done, len(paths), seconds)}"
            )
    assert total is not None  # there is at least one file
    return total


def most_frequent(census: Census, pieces: Sequence[str]) -> list[tuple[str, float]]:
    """Returns [(piece, share)], the most frequent first, without those of every example."""
    counts = census.pieces.copy()
    in_all = ("[CLS]", "[SEP]", "[PAD]")
    counts[[number for number, piece in enumerate(pieces) if piece in in_all]] = 0
    return [
        (pieces[number], counts[number] / counts.sum())
        for number in np.argsort(-counts, kind="stable")[:_MOST_FREQUENT]
    ]


def print_statistics(census: Census, pieces: Sequence[str]) -> None:
    size, bins = len(census.lengths) - 1, 8
    print(f"{census.records:,} records of {size} tokens and {len(census.masks) - 1} predictions")
    print(
        f"padding: {census.padding:.1%} of the tokens, mean length "
        f"{size * (1 - census.padding):.1f}"
    )
    for number in range(bins):
        low, high = size * number // bins + 1, size * (number + 1) // bins
        count = census.lengths[low : high + 1].sum()
        print(
            f"  {low:>5} to {high:>5} tokens  {count / census.records:6.1%}  "
            f"{'#' * round(50 * count / census.records)}"
        )
    predictions = int(census.masks @ np.arange(len(census.masks)))
    print(
        f"predictions: {predictions / census.records:.1f} an example, "
        f"{np.flatnonzero(census.masks).max()} at most, "
        f"{predictions / (census.records * size * (1 - census.padding)):.1%} of the tokens that "
        "are not padding"
    )
    masked, replaced, kept = census.changes / max(predictions, 1)
    print(
        f"  {masked:.1%} [MASK], {replaced:.1%} another piece, "
        f"{kept:.1%} left as they were (expected: 80 %, 10 %, 10 %)"
    )
    print(f"next sentence: {census.labels[1] / census.records:.1%} from another place (label 1)")
    print(
        "most frequent pieces: "
        + ", ".join(f"{piece!r} {share:.1%}" for piece, share in most_frequent(census, pieces))
    )


def plot_statistics(census: Census, pieces: Sequence[str], title: str, png_path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    (lengths, masks), (shares, frequent) = figure.subplots(2, 2)
    figure.suptitle(f"{title}: {census.records:,} records, {census.padding:.1%} padding")
    lengths.hist(range(len(census.lengths)), bins=32, weights=census.lengths)
    lengths.set(title="tokens of an example", xlabel="tokens", ylabel="records")
    masks.bar(range(len(census.masks)), census.masks, width=1.0)
    masks.set(title="predictions of an example", xlabel="predictions", ylabel="records")
    names = ["[MASK]", "another\npiece", "left as\nit was", "B from\nanother place"]
    values = [*census.changes / max(census.changes.sum(), 1), census.labels[1] / census.records]
    shares.bar_label(shares.bar(names, values), [f"{value:.1%}" for value in values])
    shares.set(title="share of the predictions; share of the records", ylim=(0, 1))
    last_to_first = most_frequent(census, pieces)[::-1]
    names = [piece.replace("$", r"\$") for piece, _ in last_to_first]  # else a formula begins
    frequent.barh(names, [share for _, share in last_to_first])
    frequent.set(title="most frequent pieces", xlabel="share of all pieces")
    make_parent_folder(png_path)
    with atomic_writer(png_path) as file:
        figure.savefig(file, format="png", dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    paths, pieces = check(flags)
    if not flags.stats:
        show_examples(paths[0], pieces, flags.record, flags.count)
        return
    census = census_of_files(paths, pieces, flags.num_workers)
    print_statistics(census, pieces)
    if flags.plot is not None:
        plot_statistics(census, pieces, flags.tfrecord, flags.plot)
        print(f"wrote {flags.plot}")


if __name__ == "__main__":
    cli.run(main)
