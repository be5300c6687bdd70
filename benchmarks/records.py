#!/usr/bin/env python3
"""The table of picking and indexing in docs/performance.md: CPU seconds, peak memory.

python3 benchmarks/records.py --tfrecord=tfrecord/part-00000-of-00500

Runs, one after the other: pick_eval_samples.py and a loop over TensorFlow's eager dataset that does
the same (count, then parse and write the picked ones, as MLPerf's does), make_idx.py and DALI's
tfrecord2idx. Checks that the indexes are equal and that the picked examples are the same. Takes
half a minute for a file of 500 MB.
"""

import argparse
import filecmp
import os
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from data_generation import measure, print_table

from bert.examples.example import decode_example
from bert.examples.tfrecord import TFRecordFile

EAGER_LOOP = """
import tensorflow as tf
lengths = dict(
    input_ids=512, input_mask=512, segment_ids=512, masked_lm_positions=76, masked_lm_ids=76,
    masked_lm_weights=76, next_sentence_labels=1)
features = {{
    name: tf.io.FixedLenFeature(
        [length], tf.float32 if name == "masked_lm_weights" else tf.int64)
    for name, length in lengths.items()}}
dataset = tf.data.TFRecordDataset("{records}")
total = sum(1 for _ in dataset)
picked = 0
with tf.io.TFRecordWriter("{picked}") as writer:
    for number, record in enumerate(dataset):
        while picked < {number} and number == int(picked * (total / {number})):
            example = tf.io.parse_single_example(record, features)
            lists = {{
                name: tf.train.Feature(float_list=tf.train.FloatList(value=value.numpy()))
                if value.dtype == tf.float32
                else tf.train.Feature(int64_list=tf.train.Int64List(value=value.numpy()))
                for name, value in example.items()}}
            copy = tf.train.Example(features=tf.train.Features(feature=lists))
            writer.write(copy.SerializeToString())
            picked += 1
"""


def decoded(path: str) -> list[dict[str, list]]:
    """Returns [{feature: list of values}] of a TFRecord file."""
    with TFRecordFile(path) as records:
        examples = [decode_example(records.payload(*extent), path) for extent in records.extents()]
    return [{name: values.tolist() for name, values in example.items()} for example in examples]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tfrecord", required=True, help="a file of examples of 512 tokens and 76 predictions"
    )
    parser.add_argument(
        "--num_examples_to_pick", type=int, default=10000, help="(default: %(default)s)"
    )
    args = parser.parse_args()
    tfrecord2idx = os.path.join(os.path.dirname(sys.executable), "tfrecord2idx")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = f"{folder}/ours", f"{folder}/theirs"
        pick = [
            f"{ROOT}/pick_eval_samples.py",
            f"--input_tfrecord={args.tfrecord}",
            f"--output_tfrecord={ours}",
        ]
        pick.append(f"--num_examples_to_pick={args.num_examples_to_pick}")
        loop = EAGER_LOOP.format(
            records=args.tfrecord, picked=theirs, number=args.num_examples_to_pick
        )
        index = [
            f"{ROOT}/make_idx.py",
            f"--tfrecord_train={args.tfrecord}",
            f"--output_idx={folder}",
        ]
        rows = [
            ("TensorFlow's eager loop", measure([sys.executable, "-c", loop])),
            ("`pick_eval_samples.py`", measure([sys.executable, *pick])),
            (
                "DALI's tfrecord2idx",
                measure([sys.executable, tfrecord2idx, args.tfrecord, f"{folder}/idx"]),
            ),
            ("`make_idx.py`", measure([sys.executable, *index])),
        ]
        if decoded(ours) != decoded(theirs):
            sys.exit("error: the picked examples differ")
        if not filecmp.cmp(
            f"{folder}/train/{os.path.basename(args.tfrecord)}.idx", f"{folder}/idx", shallow=False
        ):
            sys.exit("error: the indexes differ")
    print(f"{os.path.getsize(args.tfrecord):,} bytes of records; examples and indexes are equal\n")
    print_table(rows[:2])
    print_table(rows[2:])


if __name__ == "__main__":
    main()
