"""Step 4: takes the evaluation articles out of the training text (wiki_00.3 -> wiki_00.4, eval.txt,
eval.md5).

    python3 cleanup_scripts/separate_test_set.py --data 'extracted/*/wiki_*' \\
        --num_test_articles 10000

Writes beside each extracted file <file>.4 (the training articles) and <file>.4.test (its test
articles, if it has any), and for all files together <test_output>.txt (the evaluation articles) and
<test_output>.md5 (the MD5 of each, one a line). Which articles are taken depends on the seed, the
number of files, their order and their contents, and on nothing else. About 100 MB/s per core.
"""

import argparse
import functools
import hashlib
import os
import random
from collections.abc import Iterable

import cleanup_io
from journal import Journal, fixed_folder

from bert.common.files import (
    DataError,
    FlagError,
    atomic_writer,
    make_parent_folder,
    raise_if_any,
    read_bytes,
    remove,
)
from bert.common.path_flags import folder_problems

SEED_STEP = 13  # between the generators of one file and the next, as in MLPerf's script


def parse_args() -> argparse.Namespace:
    parser = cleanup_io.step_parser(__doc__, input_suffix=".3", output_suffix=".4")
    add = parser.add_argument
    # fmt: off
    add("--seed", type=int, default=12345, metavar="N",
        help="of the choice; file f uses N + 13 f (default: %(default)s)")
    add("--num_test_articles", type=int, default=10000, metavar="N",
        help="articles to take out of all files together; 0 = none (default: %(default)s)")
    add("--test_output", default="./results/eval", metavar="PATH",
        help="write PATH.txt and PATH.md5 (default: %(default)s)")
    # fmt: on
    return parser.parse_args()


def test_articles_of_file(file_index: int, num_files: int, num_test_articles: int) -> int:
    """How many test articles file number `file_index` gives; all files give equally many."""
    upto = [int(index * num_test_articles / num_files) for index in (file_index, file_index + 1)]
    return upto[1] - upto[0]


def choose(num_articles: int, num_chosen: int, seed: int) -> set[int]:
    """The set of `num_chosen` distinct article numbers below `num_articles` by this seed."""
    generator = random.Random(seed)
    chosen: set[int] = set()
    while len(chosen) < num_chosen:
        chosen.add(int(generator.random() * num_articles))
    return chosen


def separate(text: str, num_test_articles: int, seed: int) -> tuple[list[str], list[str]]:
    """Splits a text into (training articles, test articles), each in the order of the text."""
    articles = text.split("\n\n")
    if num_test_articles > len(articles):
        raise ValueError(
            f"holds {len(articles)} articles, but {num_test_articles} test articles should be taken"
        )
    chosen = choose(len(articles), num_test_articles, seed)
    training = [article for index, article in enumerate(articles) if index not in chosen]
    return training, [articles[index] for index in sorted(chosen)]


def joined(articles: Iterable[str]) -> str:
    return "".join(article + "\n\n" for article in articles)


def separate_file(
    input_suffix: str, output_suffix: str, path: str, num_test_articles: int, seed: int
) -> tuple[int, int, list[str]]:
    """Writes the training articles of one file, and its test articles if it has any.

    Returns (bytes read, bytes written, MD5 in hex of each test article).
    """
    source, output = path + input_suffix, path + output_suffix
    text = cleanup_io.read_text(source)
    try:
        training, test = separate(text, num_test_articles, seed)
    except ValueError as error:
        raise DataError(
            f"{source}: {error}; run again with a smaller --num_test_articles"
        ) from None
    if test:
        cleanup_io.write_text(output + cleanup_io.TEST_SUFFIX, joined(test))
    digests = [hashlib.md5(article.rstrip().encode("utf-8")).hexdigest() for article in test]
    return os.path.getsize(source), cleanup_io.write_text(output, joined(training)), digests


def files_of(args: argparse.Namespace, task: tuple) -> tuple[list[str], list[str]]:
    """The input and output paths of a task (path, number of test articles, seed)."""
    path, num_test_articles, _ = task
    output = path + args.output_suffix
    outputs = [output, output + cleanup_io.TEST_SUFFIX] if num_test_articles else [output]
    return [path + args.input_suffix], outputs


def write_test_articles(test_output: str, sources: Iterable[str], digests: Iterable[str]) -> None:
    """Writes <test_output>.txt, the sources one after the other, and <test_output>.md5."""
    make_parent_folder(test_output)
    with atomic_writer(test_output + ".txt") as output:
        for source in sources:
            output.write(read_bytes(source))
    cleanup_io.write_text(test_output + ".md5", "".join(digest + "\n" for digest in digests))


def main() -> None:
    args = parse_args()
    files, problems = cleanup_io.check_inputs(args)
    if args.num_test_articles < 0:
        problems.append(f"--num_test_articles {args.num_test_articles}: expected 0 or more")
    test_output = os.path.expanduser(args.test_output)
    folder = os.path.dirname(os.path.abspath(test_output))
    problems += [f"--test_output: {problem}" for problem in folder_problems(folder)]
    raise_if_any(problems, FlagError)

    tasks = [
        (
            path,
            test_articles_of_file(index, len(files), args.num_test_articles),
            args.seed + SEED_STEP * index,
        )
        for index, path in enumerate(files)
    ]
    step = functools.partial(separate_file, args.input_suffix, args.output_suffix)
    files_of_task = functools.partial(files_of, args)
    journal = Journal("separate_test_set", fixed_folder(args.data), files_of_task, args.restart)
    results, errors = cleanup_io.run_on_files(step, tasks, args.num_workers, journal)

    if errors:
        # What an earlier call wrote could be mistaken for these articles.
        remove(test_output + ".txt")
        remove(test_output + ".md5")
        articles = f"{test_output}.txt not written"
    else:
        sources = [source for task in tasks for source in files_of_task(task)[1][1:]]
        digests = [digest for _, _, of_file in results for digest in of_file]
        write_test_articles(test_output, sources, digests)
        articles = f"{len(digests)} articles in {test_output}.txt"
    cleanup_io.finish(
        f"separate_test_set: {cleanup_io.totals(results)}, {articles}", errors, journal
    )


if __name__ == "__main__":
    cleanup_io.run(main)
