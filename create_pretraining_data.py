#!/usr/bin/env python3
"""One text file -> one TFRecord file of BERT pretraining examples, MLPerf's to the last bit.

python3 create_pretraining_data.py --input_file=results/part-00000-of-00500 \\
    --output_file=tfrecord/part-00000-of-00500 --vocab_file=vocab.txt --do_lower_case=True \\
    --max_seq_length=512 --max_predictions_per_seq=76 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=10

Input: UTF-8 text, one sentence a line, an empty line after each document. All input files of a call form one corpus.
The same input, flags and seed give the same bytes on every machine. Takes 2 seconds for a part of 27 MB; the first call on a
machine also compiles, for 10 seconds. tests/reference/create_pretraining_data.py is the same, readably.
"""

import contextlib
import os
import sys
import time
import unicodedata

import numpy as np

from bert import cli, instances, kernels, wordpiece
from bert.encoding import encode_records
from bert.files import DataError, atomic_writer, expand_patterns, make_parent_folder, output_problems, raise_all
from tokenization import FullTokenizer

REFERENCE_UNICODE = "14.0.0"  # of CPython 3.11; other versions class newly assigned characters differently
SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[MASK]", "[UNK]")
MAX_16_BITS = (1 << 16) - 1  # token ids and positions are kept as 16-bit numbers


def parse_flags(argv=None):
    parser = cli.parser_from_docstring(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--input_file", required=True, help="text files: comma-separated names or glob patterns")
    files.add_argument(
        "--output_file", required=True, help="TFRecord files, comma-separated; record n goes to file n mod their count"
    )
    files.add_argument("--vocab_file", required=True, help="vocabulary, one token per line")
    text = parser.add_argument_group("tokenisation")
    cli.add_boolean_flag(text, "do_lower_case", True, "lower-case and strip accents; False for cased models")
    cli.add_boolean_flag(text, "preserve_unused_tokens", False, "leave [unusedN] of the vocabulary whole")
    shape = parser.add_argument_group("examples")
    add = shape.add_argument
    add("--max_seq_length", type=int, default=128, help="tokens per example, special tokens included (default: %(default)s)")
    add("--max_predictions_per_seq", type=int, default=20, help="masked tokens per example at most (default: %(default)s)")
    add("--masked_lm_prob", type=float, default=0.15, help="share of tokens to mask (default: %(default)s)")
    add(
        "--short_seq_prob",
        type=float,
        default=0.1,
        help="share of documents cut to a random shorter length; 0: none (default: %(default)s)",
    )
    add("--dupe_factor", type=int, default=10, help="passes over the corpus, masked differently each (default: %(default)s)")
    add("--random_seed", type=int, default=12345, help="(default: %(default)s)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------------------
# Checks before any work


def check(flags):
    """Returns (input paths, output paths, tokenizer); DataError with everything that is wrong."""
    problems = length_problems(flags)
    inputs, outputs, tokenizer = [], flags.output_file.split(","), None
    try:
        inputs = expand_patterns(flags.input_file)
    except DataError as error:
        problems.append(f"--input_file: {error}")
    try:
        tokenizer = FullTokenizer(flags.vocab_file, flags.do_lower_case, preserve_unused_tokens=flags.preserve_unused_tokens)
        problems += vocabulary_problems(flags.vocab_file, tokenizer.vocab)
    except (OSError, ValueError) as error:
        problems.append(f"--vocab_file: {error}")
    for path in inputs:
        if not os.access(path, os.R_OK):
            problems.append(f"--input_file: {path}: no permission to read it")
    for number, path in enumerate(outputs):
        problems += [
            f"--output_file: {problem}" for problem in output_problems(path, *inputs, flags.vocab_file, *outputs[:number])
        ]
    raise_all(problems)
    return inputs, outputs, tokenizer


def length_problems(flags):
    problems = []
    # [CLS], two [SEP] and at least one token each of A and B.
    if not 5 <= flags.max_seq_length <= MAX_16_BITS:
        problems.append(f"--max_seq_length={flags.max_seq_length}: expected 5 to {MAX_16_BITS}")
    if not 1 <= flags.max_predictions_per_seq <= flags.max_seq_length:
        problems.append(
            f"--max_predictions_per_seq={flags.max_predictions_per_seq}: expected 1 to --max_seq_length={flags.max_seq_length}"
        )
    for name in ("masked_lm_prob", "short_seq_prob"):
        if not 0 <= getattr(flags, name) <= 1:
            problems.append(f"--{name}={getattr(flags, name)}: expected 0 to 1")
    if flags.dupe_factor < 1:
        problems.append(f"--dupe_factor={flags.dupe_factor}: expected 1 or more")
    return problems


def vocabulary_problems(path, vocab):
    problems = []
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        problems.append(f"--vocab_file: {path}: lacks {' '.join(missing)}; is this a BERT vocabulary?")
    if len(vocab) - 1 > MAX_16_BITS:
        problems.append(
            f"--vocab_file: {path}: {len(vocab)} tokens, expected at most {MAX_16_BITS + 1}: ids are kept as 16-bit numbers"
        )
    return problems


# ---------------------------------------------------------------------------------------------------------------
# Text -> tokens -> instances -> records


def read_text(path):
    r"""Returns a UTF-8 file (bytes) without any \r, as TensorFlow's line reader, with which the reference reads, sees it."""
    with open(path, "rb") as file:
        data = file.read()
    text = data.replace(b"\r", b"")
    if not wordpiece.is_utf8(text):
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            kept = np.flatnonzero(np.frombuffer(data, np.uint8) != ord("\r"))
            bad = int(kept[error.start])
        line = data.count(b"\n", 0, bad) + 1
        raise DataError(
            f"{path}: line {line}, byte {bad}: found 0x{data[bad]:02x}, expected UTF-8; "
            f"see it with: tail -c +{bad + 1} '{path}' | head -c 16 | xxd"
        )
    return text


def read_corpus(paths, tokenizer):
    """Returns the `Corpus` of all files: one corpus, whose documents end at empty lines only, not at the end of a file."""
    text_tokenizer = wordpiece.TextTokenizer(tokenizer)
    corpus = wordpiece.join([text_tokenizer.tokenize(read_text(path)) for path in paths])
    if len(corpus.document_starts) == 1:
        raise DataError(f"{', '.join(paths)}: no text; expected one sentence a line, empty lines between documents")
    return corpus


def write_records(paths, rows, encode):
    """Writes the record of rows[n] to file n mod their count; returns the bytes written. No file appears before all are written."""
    written = 0
    for path in paths:
        make_parent_folder(path)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(atomic_writer(path)) for path in paths]
        for n, file in enumerate(files):
            written += sum(file.write(records) for records in encode(rows[n :: len(files)]))
    return written


def main(argv=None):
    flags = parse_flags(argv)
    started = time.monotonic()
    if unicodedata.unidata_version != REFERENCE_UNICODE:
        print(
            f"warning: this Python knows Unicode {unicodedata.unidata_version}, the reference {REFERENCE_UNICODE}: "
            "rare characters may be tokenised differently; use Python 3.11",
            file=sys.stderr,
        )
    inputs, outputs, tokenizer = check(flags)
    if not kernels.is_compiled(instances.instances_of_documents):
        print("compiling, once on this machine: about 10 seconds", file=sys.stderr)
    corpus = read_corpus(inputs, tokenizer)
    generator = instances.new_generator(flags.random_seed)
    rows, changes = instances.make_instances(
        corpus,
        tokenizer.vocab,
        generator,
        max_seq_length=flags.max_seq_length,
        max_predictions_per_seq=flags.max_predictions_per_seq,
        masked_lm_prob=flags.masked_lm_prob,
        short_seq_prob=flags.short_seq_prob,
        dupe_factor=flags.dupe_factor,
    )
    order = np.arange(len(rows))
    instances.shuffle(order, generator)

    def encode(rows):
        return encode_records(
            rows, corpus.tokens, changes, tokenizer.vocab, flags.max_seq_length, flags.max_predictions_per_seq
        )

    written = write_records(outputs, rows[order], encode)
    print(
        f"{len(corpus.document_starts) - 1:,} documents -> {len(rows):,} records, {written:,} bytes "
        f"in {flags.output_file} ({time.monotonic() - started:.1f} s)"
    )


if __name__ == "__main__":
    cli.run(main)
