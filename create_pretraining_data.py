#!/usr/bin/env python3
"""One text file -> one TFRecord file of BERT pretraining examples, MLPerf's to the last bit.

python3 create_pretraining_data.py --input_file=results/part-00000-of-00500 \\
    --output_file=tfrecord/part-00000-of-00500 --vocab_file=vocab.txt --do_lower_case=True \\
    --max_seq_length=512 --max_predictions_per_seq=76 --masked_lm_prob=0.15 --random_seed=12345 --dupe_factor=10

Input: UTF-8 text, one sentence a line, an empty line after each document. All input files of a call form one corpus.
The same input, flags and seed give the same bytes on every machine.
"""

import contextlib
import os
import random
import sys
import time
import unicodedata
from typing import NamedTuple

from bert import cli
from bert.example import encode_example, pad
from bert.files import DataError, atomic_writer, expand_patterns, make_parent_folder, output_problems, raise_all
from bert.tfrecord import frame
from tokenization import FullTokenizer

REFERENCE_UNICODE = "14.0.0"  # of CPython 3.11; other versions class newly assigned characters differently
SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[MASK]", "[UNK]")
MAX_TOKEN_ID = (1 << 16) - 1  # the encoder's limit; BERT's English vocabularies have half as many


class Instance(NamedTuple):
    """One example before padding; all lists hold Python ints."""

    ids: list  # token ids with [CLS], [SEP] and masks in place
    segment_ids: list  # 0 up to and including the first [SEP], then 1
    positions: list  # of the predicted tokens, ascending
    labels: list  # their original ids
    is_random_next: bool


def parse_flags(argv=None):
    parser = cli.parser_from_docstring(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--input_file", required=True, help="text files: comma-separated names or glob patterns")
    files.add_argument("--output_file", required=True, help="TFRecord files, comma-separated; record n goes to file n mod their count")
    files.add_argument("--vocab_file", required=True, help="vocabulary, one token per line")
    text = parser.add_argument_group("tokenisation")
    cli.add_boolean_flag(text, "do_lower_case", True, "lower-case and strip accents; False for cased models")
    cli.add_boolean_flag(text, "preserve_unused_tokens", False, "leave [unusedN] of the vocabulary whole")
    shape = parser.add_argument_group("examples")
    add = shape.add_argument
    add("--max_seq_length", type=int, default=128, help="tokens per example, special tokens included (default: %(default)s)")
    add("--max_predictions_per_seq", type=int, default=20, help="masked tokens per example at most (default: %(default)s)")
    add("--masked_lm_prob", type=float, default=0.15, help="share of tokens to mask (default: %(default)s)")
    add("--short_seq_prob", type=float, default=0.1, help="share of documents cut to a random shorter length; 0: none (default: %(default)s)")
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
        tokenizer = FullTokenizer(
            flags.vocab_file, flags.do_lower_case, preserve_unused_tokens=flags.preserve_unused_tokens
        )
        problems += vocabulary_problems(flags.vocab_file, tokenizer.vocab)
    except (OSError, ValueError) as error:
        problems.append(f"--vocab_file: {error}")
    for path in inputs:
        if not os.access(path, os.R_OK):
            problems.append(f"--input_file: {path}: no permission to read it")
    for number, path in enumerate(outputs):
        problems += [f"--output_file: {problem}" for problem in output_problems(path, *inputs, flags.vocab_file, *outputs[:number])]
    raise_all(problems)
    return inputs, outputs, tokenizer


def length_problems(flags):
    problems = []
    # [CLS], two [SEP] and at least one token each of A and B.
    if flags.max_seq_length < 5:
        problems.append(f"--max_seq_length={flags.max_seq_length}: expected 5 or more")
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


def vocabulary_problems(path, vocab):
    problems = []
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        problems.append(f"--vocab_file: {path}: lacks {' '.join(missing)}; is this a BERT vocabulary?")
    if len(vocab) - 1 > MAX_TOKEN_ID:
        problems.append(f"--vocab_file: {path}: {len(vocab)} tokens, expected at most {MAX_TOKEN_ID + 1}: larger ids cannot be encoded here")
    return problems


# ---------------------------------------------------------------------------------------------------------------
# Text -> documents


def read_documents(paths, tokenizer):
    """Returns the corpus: a list of documents, each a list of sentences, each a list of token ids."""
    documents = [[]]
    for path in paths:
        for line in read_lines(path):
            if not line:
                documents.append([])
                continue
            ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(line))
            if ids:
                documents[-1].append(ids)
    documents = [document for document in documents if document]
    if not documents:
        raise DataError(f"{', '.join(paths)}: no text; expected one sentence a line, empty lines between documents")
    return documents


def read_lines(path):
    r"""Yields the stripped lines (str) of a UTF-8 file; lines end at \n alone, and every \r is dropped.

    Dropping \r anywhere is what TensorFlow's line reader does, with which the reference reads.
    """
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.replace(b"\r", b"").decode("utf-8").strip()
            except UnicodeDecodeError as error:
                kept = (i for i, octet in enumerate(line) if octet != ord("\r"))
                bad = next(i for n, i in enumerate(kept) if n == error.start)
                raise DataError(
                    f"{path}: line {number}, byte {offset + bad}: found 0x{line[bad]:02x}, expected UTF-8; "
                    f"see it with: tail -c +{offset + bad + 1} '{path}' | head -c 16 | xxd"
                ) from None
            offset += len(line)


# ---------------------------------------------------------------------------------------------------------------
# Documents -> instances. Every draw below is part of the definition: one more, one less, or two in another order
# and all that follows differs.


def create_instances(documents, vocab, flags, rng):
    """Returns all instances in final order; shuffles `documents` in place."""
    rng.shuffle(documents)
    instances = []
    for _ in range(flags.dupe_factor):
        for index in range(len(documents)):
            instances.extend(create_instances_of_document(documents, index, vocab, flags, rng))
    rng.shuffle(instances)
    return instances


def create_instances_of_document(documents, index, vocab, flags, rng):
    """Yields the instances of one pass over one document."""
    document = documents[index]
    max_num_tokens = flags.max_seq_length - 3
    target = max_num_tokens
    if rng.random() < flags.short_seq_prob:
        target = rng.randint(2, max_num_tokens)
    chunk, chunk_tokens, i = [], 0, 0
    while i < len(document):
        chunk.append(document[i])
        chunk_tokens += len(document[i])
        if i == len(document) - 1 or chunk_tokens >= target:
            a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
            a = sum(chunk[:a_end], [])
            # With a single sentence there is no next one to take, and nothing is drawn.
            is_random_next = len(chunk) == 1 or rng.random() < 0.5
            if is_random_next:
                b = random_next(documents, index, target - len(a), rng)
                i -= len(chunk) - a_end  # the unused sentences are read again
            else:
                b = sum(chunk[a_end:], [])
            truncate_pair(a, b, max_num_tokens, rng)
            yield mask(a, b, is_random_next, vocab, flags, rng)
            chunk, chunk_tokens = [], 0
        i += 1


def random_next(documents, index, target_length, rng):
    """Returns consecutive sentences of another document, until they reach `target_length` tokens."""
    for _ in range(10):
        other = rng.randint(0, len(documents) - 1)
        if other != index:
            break
    document = documents[other]
    tokens = []
    for sentence in document[rng.randint(0, len(document) - 1) :]:
        tokens.extend(sentence)
        if len(tokens) >= target_length:
            break
    return tokens


def truncate_pair(a, b, max_num_tokens, rng):
    """Shortens the longer list (b when equal) by one token at its front or end until both fit; in place."""
    while len(a) + len(b) > max_num_tokens:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def mask(a, b, is_random_next, vocab, flags, rng):
    """Joins the pair and replaces the tokens to be predicted: 80 % [MASK], 10 % kept, 10 % any token."""
    ids = [vocab["[CLS]"], *a, vocab["[SEP]"], *b, vocab["[SEP]"]]
    segment_ids = [0] * (len(a) + 2) + [1] * (len(b) + 1)
    candidates = [*range(1, len(a) + 1), *range(len(a) + 2, len(ids) - 1)]
    rng.shuffle(candidates)
    wanted = min(flags.max_predictions_per_seq, max(1, round(len(ids) * flags.masked_lm_prob)))
    labels = {}
    for position in candidates[:wanted]:
        labels[position] = ids[position]
        if rng.random() < 0.8:
            ids[position] = vocab["[MASK]"]
        elif rng.random() >= 0.5:
            ids[position] = rng.randint(0, len(vocab) - 1)
    positions = sorted(labels)
    return Instance(ids, segment_ids, positions, [labels[position] for position in positions], is_random_next)


# ---------------------------------------------------------------------------------------------------------------
# Instances -> records


def to_record(instance, flags):
    """Pads an instance and returns its TFRecord (bytes)."""
    example = {
        "input_ids": instance.ids,
        "input_mask": [1] * len(instance.ids),
        "segment_ids": instance.segment_ids,
        "masked_lm_positions": instance.positions,
        "masked_lm_ids": instance.labels,
        "masked_lm_weights": [1.0] * len(instance.positions),
        "next_sentence_labels": [int(instance.is_random_next)],
    }
    return frame(encode_example(pad(example, flags.max_seq_length, flags.max_predictions_per_seq)))


def write_records(instances, paths, flags):
    """Writes record n to file n mod their count; returns the bytes written. No file appears before all records are written."""
    written = 0
    for path in paths:
        make_parent_folder(path)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(atomic_writer(path)) for path in paths]
        for n, instance in enumerate(instances):
            written += files[n % len(files)].write(to_record(instance, flags))
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
    documents = read_documents(inputs, tokenizer)
    instances = create_instances(documents, tokenizer.vocab, flags, random.Random(flags.random_seed))
    written = write_records(instances, outputs, flags)
    print(
        f"{len(documents):,} documents -> {len(instances):,} records, {written:,} bytes "
        f"in {flags.output_file} ({time.monotonic() - started:.1f} s)"
    )


if __name__ == "__main__":
    cli.run(main)
