#!/usr/bin/env python3
"""The readable definition of create_pretraining_data.py: the same flags, the same bytes, forty
times slower.

python3 tests/reference/create_pretraining_data.py --input_file=results/part-00000-of-00500 \\
    --output_file=/tmp/part-00000-of-00500 --vocab_file=vocab.txt \\
    [the flags of create_pretraining_data.py]

Pure Python on `random.Random` and tokenization.py, written through TensorFlow's own
`tf.train.Example` and `tf.io.TFRecordWriter`. Memory grows with dupe_factor times the text.
"""

import os
import random
import sys
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
from create_pretraining_data import check, parse_flags


class Instance(NamedTuple):
    """One example before padding; all lists hold Python ints."""

    ids: list  # token ids with [CLS], [SEP] and masks in place
    segment_ids: list  # 0 up to and including the first [SEP], then 1
    positions: list  # of the predicted tokens, ascending
    labels: list  # their original ids
    is_random_next: bool


# --------------------------------------------------------------------------------------------------
# Text -> documents


def read_documents(paths, tokenizer):
    """Returns a list of documents, each a list of sentences, each a list of token ids."""
    documents = [[]]
    for path in paths:
        for line in read_lines(path):
            if not line:
                documents.append([])
                continue
            ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(line))
            if ids:
                documents[-1].append(ids)
    return [document for document in documents if document]


def read_lines(path):
    r"""Yields the stripped lines (str) of a UTF-8 file; lines end at \n alone, and every \r is
    dropped.

    Dropping \r anywhere is what TensorFlow's line reader does, with which the reference reads.
    """
    with open(path, "rb") as file:
        for line in file:
            yield line.replace(b"\r", b"").decode("utf-8").strip()


# --------------------------------------------------------------------------------------------------
# Documents -> instances. Every draw below is part of the definition: one more, one less, or two in
# another order and all that follows differs.


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
    """Returns consecutive sentences of another document, up to `target_length` tokens or more."""
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
    """Shortens the longer list (b when equal) by one token at its front or end until both fit; in
    place.
    """
    while len(a) + len(b) > max_num_tokens:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def mask(a, b, is_random_next, vocab, flags, rng):
    """Joins the pair and replaces the tokens to be predicted: 80 % [MASK], 10 % kept, 10 % any
    token.
    """
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
    return Instance(
        ids, segment_ids, positions, [labels[position] for position in positions], is_random_next
    )


# --------------------------------------------------------------------------------------------------
# Instances -> records


def to_example(instance, flags):
    """Pads an instance and returns its `tf.train.Example`."""
    import tensorflow as tf

    def int64_list(values, length):
        return tf.train.Feature(
            int64_list=tf.train.Int64List(value=values + [0] * (length - len(values)))
        )

    def float_list(values, length):
        return tf.train.Feature(
            float_list=tf.train.FloatList(value=values + [0.0] * (length - len(values)))
        )

    sequence, predictions = flags.max_seq_length, flags.max_predictions_per_seq
    features = {
        "input_ids": int64_list(instance.ids, sequence),
        "input_mask": int64_list([1] * len(instance.ids), sequence),
        "segment_ids": int64_list(instance.segment_ids, sequence),
        "masked_lm_positions": int64_list(instance.positions, predictions),
        "masked_lm_ids": int64_list(instance.labels, predictions),
        "masked_lm_weights": float_list([1.0] * len(instance.positions), predictions),
        "next_sentence_labels": int64_list([int(instance.is_random_next)], 1),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def main(argv=None):
    import tensorflow as tf

    flags = parse_flags(argv)
    inputs, outputs, tokenizer = check(flags)
    documents = read_documents(inputs, tokenizer)
    instances = create_instances(
        documents, tokenizer.vocab, flags, random.Random(flags.random_seed)
    )
    writers = [tf.io.TFRecordWriter(path) for path in outputs]
    for n, instance in enumerate(instances):
        # Sorted by feature name, so that the bytes are the same everywhere.
        writers[n % len(writers)].write(
            to_example(instance, flags).SerializeToString(deterministic=True)
        )
    for writer in writers:
        writer.close()


if __name__ == "__main__":
    main()
