#!/usr/bin/env python3
"""One text file -> one file of BERT pretraining examples, MLPerf's to the last bit.

python3 create_pretraining_data.py --input_file=results/part-00000-of-00500 \\
    --output_file=tfrecord/part-00000-of-00500 --vocab_file=vocab.txt --do_lower_case=True \\
    --max_seq_length=512 --max_predictions_per_seq=76 --masked_lm_prob=0.15 \\
    --random_seed=12345 --dupe_factor=10

Input: UTF-8 text, one sentence a line, an empty line after each document. All input files of a call
form one corpus. Files may lie in an object store (s3://, gs://). The same input, flags and seed
give the same bytes on every machine. Takes 2 seconds for a part of 27 MB; the first call on a
machine also compiles, for 10 seconds. tests/reference/create_pretraining_data.py is the same,
readably.

--output_format=instances writes the same examples before they are padded and spelled out, an eighth
of the size: bert_dali_dataloader.py and train.py read both. instances_to_tfrecord.py makes the
TFRecord file of them, the bytes that the text would have given.
"""

import argparse
import collections
import os
import resource
import sys

from bert.common import cli, kernels
from bert.common.files import DataError, FlagError, is_remote, raise_if_any, size_of
from bert.common.path_flags import expand_patterns, output_problems
from bert.common.progress import ProgressLine
from bert.examples.display import example_words
from bert.examples.example_file import open_examples
from bert.generation import instances
from bert.generation.part import FORMATS, Settings, generate
from tokenization import FullTokenizer, vocab_lines

SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[MASK]", "[UNK]")
MAX_16_BITS = (1 << 16) - 1  # token ids and positions are kept as 16-bit numbers
BASE_BYTES = 150_000_000  # of Python and the compiled code
FEWEST_USUAL_TOKENS = 1000


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--input_file", required=True, help="text files: comma-separated names or glob patterns"
    )
    files.add_argument(
        "--output_file",
        required=True,
        help="files to write, comma-separated; record n goes to file n mod their count",
    )
    files.add_argument(
        "--show_examples",
        type=int,
        default=0,
        help=(
            "examples of the first output file to print, as inspect_tfrecord.py shows them; "
            "0: none (default: 0)"
        ),
    )
    add_data_flags(parser)
    return parser.parse_args(argv)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that shape the data: the vocabulary, those named like `Settings`' fields, and the
    format.
    """
    text = parser.add_argument_group("tokenisation")
    text.add_argument("--vocab_file", required=True, help="vocabulary, one token per line")
    cli.add_boolean_flag(
        text, "do_lower_case", True, "lower-case and strip accents; False for cased models"
    )
    cli.add_boolean_flag(
        text, "preserve_unused_tokens", False, "leave [unusedN] of the vocabulary whole"
    )
    shape = parser.add_argument_group("examples")
    add = shape.add_argument
    add(
        "--max_seq_length",
        type=int,
        default=128,
        help="tokens per example, special tokens included (default: %(default)s)",
    )
    add(
        "--max_predictions_per_seq",
        type=int,
        default=20,
        help="masked tokens per example at most (default: %(default)s)",
    )
    add(
        "--masked_lm_prob",
        type=float,
        default=0.15,
        help="share of tokens to mask (default: %(default)s)",
    )
    add(
        "--short_seq_prob",
        type=float,
        default=0.1,
        help="share of documents cut to a random shorter length; 0: none (default: %(default)s)",
    )
    add(
        "--dupe_factor",
        type=int,
        default=10,
        help="passes over the corpus, masked differently each (default: %(default)s)",
    )
    add("--random_seed", type=int, default=12345, help="(default: %(default)s)")
    add(
        "--output_format",
        choices=FORMATS,
        default="tfrecord",
        help=(
            "tfrecord: tf.train.Example records, as MLPerf's; instances: the same examples for "
            "the loader of this project, an eighth of the size (default: %(default)s)"
        ),
    )


# --------------------------------------------------------------------------------------------------
# Checks before any work


def check(flags: argparse.Namespace) -> tuple[list[str], list[str], FullTokenizer]:
    """Returns (input paths, output paths, tokenizer); FlagError with everything that is wrong."""
    inputs: list[str] = []
    outputs = flags.output_file.split(",")
    tokenizer, problems = check_data_flags(flags)
    try:
        inputs = expand_patterns(flags.input_file)
    except (DataError, OSError) as error:
        problems.append(f"--input_file: {error}")
    problems += [f"--input_file: {problem}" for problem in read_problems(inputs)]
    for number, path in enumerate(outputs):
        problems += [
            f"--output_file: {problem}"
            for problem in output_problems(path, *inputs, flags.vocab_file, *outputs[:number])
        ]
    if flags.show_examples < 0:
        problems.append(f"--show_examples={flags.show_examples}: expected 0 or more")
    if flags.show_examples and is_remote(outputs[0]):
        problems.append(
            f"--show_examples: {outputs[0]} is not on this machine; "
            "leave the flag out, or write a local file first"
        )
    raise_if_any(problems, FlagError)
    assert tokenizer  # else there is a problem
    check_memory(flags, sum(size_of(path) or 0 for path in inputs))
    return inputs, outputs, tokenizer


def warn_of_vocabulary(flags: argparse.Namespace) -> None:
    for note in vocabulary_notes(flags):
        print(f"warning: --vocab_file: {flags.vocab_file}: {note}", file=sys.stderr)


def check_memory(flags: argparse.Namespace, text_bytes: int) -> None:
    """DataError if a text surely takes more memory than there is, instead of an error on the way.

    The estimate is for English text, 4.8 bytes a token; other text has more tokens.
    """
    tokens = text_bytes / 4.8
    instances = flags.dupe_factor * tokens / flags.max_seq_length
    changes = flags.dupe_factor * tokens * flags.masked_lm_prob
    needed = BASE_BYTES + 3 * text_bytes + 32 * instances + 4 * changes
    available = available_memory()
    if needed > available:
        raise DataError(
            f"{text_bytes:,} bytes of text with --dupe_factor={flags.dupe_factor} take about "
            f"{needed / 1e9:,.1f} GB of memory, {available / 1e9:,.1f} GB are available: cut the "
            "text into smaller files, or choose a smaller --dupe_factor"
        )


def available_memory() -> float:
    """Bytes that this process may still take: of the machine, and by `ulimit -v`."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    free = 1024 * int(lines["MemAvailable"].split()[0])
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def check_data_flags(flags: argparse.Namespace) -> tuple[FullTokenizer | None, list[str]]:
    """Returns (tokenizer, or None if it cannot be made, problems) of the flags that
    `add_data_flags` adds.
    """
    tokenizer, problems = None, length_problems(flags)
    try:
        tokenizer = FullTokenizer(
            flags.vocab_file,
            flags.do_lower_case,
            preserve_unused_tokens=flags.preserve_unused_tokens,
        )
        problems += vocabulary_problems(flags.vocab_file, tokenizer.vocab)
    except (OSError, ValueError) as error:
        problems.append(f"--vocab_file: {error}")
    return tokenizer, problems


def read_problems(paths: list[str]) -> list[str]:
    return [
        f"{path}: no permission to read it"
        for path in paths
        if not is_remote(path) and not os.access(path, os.R_OK)
    ]


def settings_of(flags: argparse.Namespace) -> Settings:
    return Settings(**{name: getattr(flags, name) for name in Settings._fields})


def length_problems(flags: argparse.Namespace) -> list[str]:
    problems = []
    # [CLS], two [SEP] and at least one token each of A and B.
    if not 5 <= flags.max_seq_length <= MAX_16_BITS:
        problems.append(f"--max_seq_length={flags.max_seq_length}: expected 5 to {MAX_16_BITS}")
    if not 1 <= flags.max_predictions_per_seq <= flags.max_seq_length:
        problems.append(
            f"--max_predictions_per_seq={flags.max_predictions_per_seq}: "
            f"expected 1 to --max_seq_length={flags.max_seq_length}"
        )
    for name in ("masked_lm_prob", "short_seq_prob"):
        if not 0 <= getattr(flags, name) <= 1:
            problems.append(f"--{name}={getattr(flags, name)}: expected 0 to 1")
    if flags.dupe_factor < 1:
        problems.append(f"--dupe_factor={flags.dupe_factor}: expected 1 or more")
    return problems


def vocabulary_problems(path: str, vocab: dict[str, int]) -> list[str]:
    problems = []
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        problems.append(
            f"--vocab_file: {path}: lacks {' '.join(missing)}; is this a BERT vocabulary?"
        )
    if len(vocab) - 1 > MAX_16_BITS:
        problems.append(
            f"--vocab_file: {path}: {len(vocab)} tokens, expected at most {MAX_16_BITS + 1}: "
            "ids are kept as 16-bit numbers"
        )
    return problems


def vocabulary_notes(flags: argparse.Namespace) -> list[str]:
    """Returns what is unusual about the vocabulary, though examples can be made with it."""
    lines = vocab_lines(flags.vocab_file)
    words = [token for token in lines if not token.startswith("[")]
    with_capitals = sum(token != token.lower() for token in words)
    notes = []
    if len(lines) < FEWEST_USUAL_TOKENS:
        notes.append(f"only {len(lines):,} tokens; BERT's vocabularies have about 30,000")
    if "" in lines:
        notes.append(f"line {lines.index('') + 1} is empty; the ids of all tokens count it")
    repeated = [token for token, count in collections.Counter(lines).items() if token and count > 1]
    if repeated:
        number = lines.index(repeated[0], lines.index(repeated[0]) + 1) + 1
        notes.append(
            f"line {number} repeats {repeated[0]!r} ({len(repeated):,} repeated tokens); the model "
            "must count ids alike: the first place counts"
        )
    if not flags.do_lower_case and words and not with_capitals:
        notes.append(
            "no token has an upper-case letter, so with --do_lower_case=False words that have one "
            "become [UNK]; is this an uncased vocabulary?"
        )
    if flags.do_lower_case and with_capitals > len(words) / 20:
        notes.append(
            f"{with_capitals:,} tokens have upper-case letters, and with --do_lower_case=True are "
            "never used; is this a cased vocabulary?"
        )
    return notes


def announce_compilation() -> None:
    kernels.announce_compilation(instances.instances_of_documents)


def show_examples(path: str, count: int, tokens: list[str]) -> None:
    """Prints the first examples of a file as it lies on the disk; tokens: the vocabulary by id."""
    for place, example in open_examples(path).examples(0, count):
        print(f"*** {place} ***\n{example_words(example, tokens)}\n")


def main(argv: list[str] | None = None) -> None:
    flags = parse_flags(argv)
    inputs, outputs, tokenizer = check(flags)
    warn_of_vocabulary(flags)
    announce_compilation()
    with ProgressLine() as progress:
        made = generate(
            inputs, outputs, tokenizer, settings_of(flags),
            output_format=flags.output_format, report=progress.show,
        )  # fmt: skip
    for note in made.notes:
        print(f"warning: {note}", file=sys.stderr)
    if flags.show_examples:
        show_examples(outputs[0], flags.show_examples, list(tokenizer.vocab))
    print(
        f"{made.documents:,} documents -> {made.records:,} records, {made.bytes:,} bytes "
        f"in {flags.output_file} ({made.seconds:.1f} s)"
    )


if __name__ == "__main__":
    cli.run(main)
