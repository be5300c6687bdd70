"""What is typed wrong, at all scripts: exit code, words, and nothing left behind.

Each row is a command that would work, with flags behind it that make it wrong (the last one wins).
"""

import json
import os
import shlex
import shutil

import pytest
from conftest import ROOT, UNICODE_TEXT, run_script
from examples_of_text import make_examples

from tests.script_server import script_server

SHAPE = "--max_seq_length=64 --max_predictions_per_seq=10"
COMMANDS = {
    "create_pretraining_data.py": (
        f"--input_file=text --output_file=out --vocab_file=vocab --dupe_factor=1 {SHAPE}"
    ),
    "create_pretraining_shards.py": (
        "--input_dir=texts --output_dir=out --vocab_file=vocab --num_workers=1 --dupe_factor=1 "
        + SHAPE
    ),
    "instances_to_tfrecord.py": "--instances=instances --output_dir=out --num_workers=1",
    "make_idx.py": "--tfrecord_train=tfrecord --output_idx=out --num_workers=1",
    "pick_eval_samples.py": (
        f"--input_tfrecord=tfrecord/a --output_tfrecord=out --num_examples_to_pick=3 {SHAPE}"
    ),
    "inspect_tfrecord.py": "--vocab_file=vocab --num_workers=1",
    "verify_dataset.py": "--vocab_file=vocab --num_workers=1 --own_data",
    "train.py": (
        "--bert_config_file=config.json --vocab_file=vocab --output_dir=out --num_threads=1 "
        "--tfrecord_train=tfrecord/a --tfrecord_eval=tfrecord/b --train_batch_size=8 "
        "--learning_rate=1e-3 --num_train_steps=2"
    ),
    "fill_mask.py": "--output_dir=empty_folder --text=text",
    "cleanup_scripts/cleanup_file.py": "--data=extracted/wiki_* --num_workers=1",
    "cleanup_scripts/clean_markup.py": "--data=extracted/wiki_* --num_workers=1",
    "cleanup_scripts/do_sentence_segmentation.py": "--data=extracted/wiki_* --num_workers=1",
    "cleanup_scripts/separate_test_set.py": (
        "--data=extracted/wiki_* --num_workers=1 --input_suffix= --test_output=out/eval"
    ),
    "cleanup_scripts/do_gather.py": (
        "--data=extracted/wiki_* --num_workers=1 --input_suffix= --out_dir=out"
    ),
    "cleanup_scripts/extract_dump.py": "--dump=dump.xml --out_dir=out --num_workers=1",
    "cleanup_scripts/download.py": "--out_dir=out --date=20200101 --base_url=http://127.0.0.1:9",
}
# Those that have no required flag, or whose error says more than which one is missing.
NEED_NONE = {"verify_dataset.py", *(name for name in COMMANDS if name.startswith("cleanup"))}

NEED_FRAMEWORKS = {"train.py", "fill_mask.py"}

# Rows of one script: (flags, exit code, words of the message).
ROWS = {
    "create_pretraining_data.py": [
        ("--output_file=/dev/null", 2, "--output_file: /dev/null is a device"),
        ("--output_file=/dev/stdout", 2, "--output_file: /dev/stdout is a"),
        ("--output_file=fifo", 2, "--output_file: fifo is a FIFO"),
        ("--output_file=texts", 2, "--output_file: texts is a folder"),
        ("--output_file=text", 2, "--output_file: text would overwrite an input"),
        ("--output_file=link", 2, "--output_file: link would overwrite an input"),
        ("--output_file=hardlink", 2, "--output_file: hardlink would overwrite an input"),
        ("--output_file=vocab", 2, "--output_file: vocab would overwrite an input"),
        ("--output_file=out,out", 2, "--output_file: out would overwrite"),
        ("--output_file=", 2, "--output_file: an empty name"),
        ("--output_file=out,", 2, "--output_file: an empty name"),
        ("--output_file=text/out", 2, "text is a file, expected a folder"),
        ("--output_file=a/b/out", 2, "neither it nor its parent folder exists"),
        ("--input_file=absent", 2, "--input_file: absent: no such file"),
        ("--input_file=absent-*", 2, "--input_file: absent-*: no such file"),
        ("--input_file=", 2, "--input_file: (empty name): no such file"),
        ("--input_file=text,", 2, "--input_file: (empty name): no such file"),
        ("--input_file=texts", 2, "--input_file: texts is a folder, expected a file"),
        ("--input_file=fifo", 2, "--input_file: fifo is a FIFO"),
        ("--input_file=/dev/null", 2, "--input_file: /dev/null is a device"),
        ("--input_file=-", 2, "--input_file: -: standard input cannot be read"),
        ("--input_file=with,comma", 2, "with,comma is taken for 2 names, as commas separate names"),
        ("--input_file=dangling", 2, "--input_file: dangling: a link to gone, which does not"),
        ("--input_file='with_dangling/*'", 2, "with_dangling/b: a link to gone"),
        ("--input_file=empty", 1, "empty: no text; expected one sentence a line"),
        ("--input_file=tfrecord/a", 1, "tfrecord/a: "),
        ("--input_file=gzip", 1, "gzip: "),
        ("--input_file=latin1", 1, "latin1: line 1, byte 3: found 0xe9, expected UTF-8"),
        ("--vocab_file=absent", 2, "--vocab_file: "),
        ("--vocab_file=texts", 2, "--vocab_file: "),
        ("--vocab_file=empty", 2, "--vocab_file: empty: lacks [CLS] [SEP] [MASK] [UNK]"),
        ("--vocab_file=latin1", 2, "--vocab_file: latin1: not a vocabulary: byte 3 is not UTF-8"),
        ("--vocab_file=text", 2, "--vocab_file: text: lacks [CLS]"),
        ("--max_seq_length=4", 2, "--max_seq_length=4: expected 5 to 65535"),
        ("--max_seq_length=70000", 2, "--max_seq_length=70000: expected 5 to 65535"),
        ("--max_seq_length=abc", 2, "--max_seq_length: invalid int value: 'abc'"),
        ("--max_seq_length=", 2, "--max_seq_length: invalid int value: ''"),
        ("--max_predictions_per_seq=0", 2, "--max_predictions_per_seq=0: expected 1 to"),
        ("--max_predictions_per_seq=65", 2, "expected 1 to --max_seq_length=64"),
        ("--masked_lm_prob=1.5", 2, "--masked_lm_prob=1.5: expected 0 to 1"),
        ("--masked_lm_prob=nan", 2, "--masked_lm_prob=nan: expected 0 to 1"),
        ("--masked_lm_prob=-0.1", 2, "--masked_lm_prob=-0.1: expected 0 to 1"),
        ("--short_seq_prob=2", 2, "--short_seq_prob=2.0: expected 0 to 1"),
        ("--dupe_factor=0", 2, "--dupe_factor=0: expected 1 or more"),
        ("--dupe_factor=1000000000000", 1, "take about", "GB are available", "--dupe_factor"),
        ("--do_lower_case=maybe", 2, "--do_lower_case: found 'maybe', expected True or False"),
        ("--output_format=parquet", 2, "--output_format: invalid choice: 'parquet'"),
        ("--show_examples=-1", 2, "--show_examples=-1: expected 0 or more"),
        ("--max_seq_lenght=64", 2, "did you mean --max_seq_length?"),
        ("--max_seq=64", 2, "--max_seq: no such flag"),
        ("@absent.args", 2, "absent.args"),
        ("more", 2, "more"),
    ],
    "create_pretraining_shards.py": [
        ("--input_dir=absent", 2, "--input_dir: absent: no such file"),
        ("--input_dir=empty_folder", 2, "empty_folder: the folder holds no file part-*"),
        ("--input_dir=with_dangling", 2, "--input_dir: ", "a link to gone, which does not exist"),
        ("--output_dir=texts", 2, "--output_dir: texts is the folder of the texts"),
        ("--output_dir=text", 2, "text is a file, expected a folder"),
        ("--output_dir=a/b/c", 2, "neither it nor its parent folder exists"),
        ("--num_workers=0", 2, "--num_workers=0: expected 1 or more"),
        ("--num_workers=two", 2, "--num_workers: invalid int value: 'two'"),
        ("--check", 1, "not made yet", "the same command without --check"),
        ("--check --overwrite", 2, "--check makes nothing, --overwrite replaces parts"),
        ("--ray_address=nonsense", 2, "--ray_address: "),
        ("--dupe_factor=1000000000000", 1, "GB are available"),
        ("--vocab_file=empty", 2, "--vocab_file: empty: lacks"),
        ("--max_seq_length=1", 2, "--max_seq_length=1: expected 5 to"),
        ("--output_dirr=x", 2, "did you mean --output_dir?"),
        ("--output_dir=made", 1, "finished parts differ", "--overwrite makes them again"),
    ],
    "instances_to_tfrecord.py": [
        ("--instances=absent", 2, "--instances: absent: no such file"),
        ("--instances=tfrecord", 2, "--instances: tfrecord/a is not an instance file"),
        ("--instances=empty_folder", 2, "--instances: empty_folder: the folder holds no file"),
        ("--instances=cut_instances", 1, "cut_instances: ", "cut off"),
        ("--output_dir=instances", 2, "would overwrite an input"),
        ("--output_dir=text", 2, "text is a file, expected a folder"),
        ("--num_workers=0", 2, "--num_workers=0: expected 1 or more"),
        ("--instance=x", 2, "did you mean --instances?"),
    ],
    "make_idx.py": [
        ("--tfrecord_train=absent", 2, "--tfrecord_train: absent: no such file"),
        ("--tfrecord_train=empty_folder", 2, "--tfrecord_train: empty_folder: the folder holds no"),
        ("--tfrecord_train=with_dangling", 2, "--tfrecord_train: ", "a link to gone"),
        ("--tfrecord_train=instances", 2, "is an instance file, which needs no index"),
        ("--tfrecord_train=text", 1, "text: ", "byte 0"),
        ("--tfrecord_train=cut_records", 1, "cut_records: "),
        ("--tfrecord_eval=absent", 2, "--tfrecord_eval: absent: no such file"),
        ("--output_idx=text", 2, "--output_idx: ", "text is a file, expected a folder"),
        ("--output_idx=text/idx", 2, "text is a file, expected a folder"),
        ("--num_workers=-1", 2, "--num_workers=-1: expected 1 or more"),
        ("--tfrecord=x", 2, "--tfrecord: no such flag"),
    ],
    "pick_eval_samples.py": [
        ("--input_tfrecord=absent", 2, "--input_tfrecord: absent: no such file"),
        ("--input_tfrecord=tfrecord", 2, "--input_tfrecord: tfrecord is a folder, expected a file"),
        ("--input_tfrecord=fifo", 2, "--input_tfrecord: fifo is a FIFO"),
        ("--input_tfrecord=text", 1, "text: "),
        ("--input_tfrecord=empty", 1, "empty: "),
        ("--input_tfrecord=cut_records", 1, "cut_records: "),
        ("--input_tfrecord=cut_instances", 1, "cut_instances: "),
        ("--output_tfrecord=tfrecord/a", 2, "--output_tfrecord: tfrecord/a would overwrite"),
        ("--output_tfrecord=/dev/null", 2, "--output_tfrecord: /dev/null is a device"),
        ("--output_tfrecord=texts", 2, "--output_tfrecord: texts is a folder"),
        ("--output_tfrecord=a/b/c", 2, "neither it nor its parent folder exists"),
        ("--num_examples_to_pick=0", 2, "--num_examples_to_pick=0: expected 1 or more"),
        ("--num_examples_to_pick=-5", 2, "--num_examples_to_pick=-5: expected 1 or more"),
        ("--num_examples_to_pick=1e3", 2, "--num_examples_to_pick: invalid int value: '1e3'"),
        ("--num_examples_to_pick=1000000000000000", 1, "GB free; pick fewer"),
        ("--max_seq_length=512", 1, "tfrecord/a: ", "--max_seq_length=512"),
        ("--output_format=instances", 2, "tfrecord/a is no instance file"),
        ("--num_examples=3", 2, "did you mean --num_examples_to_pick?"),
    ],
    "inspect_tfrecord.py": [
        ("absent", 2, "absent: no such file"),
        ("tfrecord", 2, "tfrecord: 2 files; give one of them, or add --stats"),
        ("text", 1, "text: "),
        ("empty", 1, "empty"),
        ("fifo", 2, "fifo is a FIFO"),
        ("with_dangling --stats", 2, "a link to gone"),
        ("cut_records --stats", 1, "cut_records: "),
        ("cut_instances --stats", 1, "cut_instances: "),
        ("tfrecord/a --vocab_file=absent", 2, "--vocab_file: "),
        ("tfrecord/a --vocab_file=empty", 2, "--vocab_file: empty: has no [MASK]"),
        ("tfrecord/a --record=-1", 2, "--record=-1: expected 0 or more"),
        ("tfrecord/a --record=1000000", 1, "is past the end"),
        ("tfrecord/a --count=0", 2, "--count=0: expected 1 or more"),
        ("tfrecord/a --num_workers=0", 2, "--num_workers=0: expected 1 or more"),
        ("tfrecord/a --plot=tfrecord/a", 2, "--plot: tfrecord/a would overwrite an input"),
        ("tfrecord/a --plot=texts", 2, "--plot: texts is a folder"),
        ("tfrecord/a --stat", 2, "did you mean --stats?"),
    ],
    "verify_dataset.py": [
        ("", 2, "nothing to verify: give --results, --tfrecord or --eval_10k"),
        ("--tfrecord=absent", 2, "--tfrecord: absent: no such file"),
        ("--tfrecord=empty_folder", 2, "--tfrecord: empty_folder: the folder holds no file"),
        ("--tfrecord=with_dangling", 2, "--tfrecord: ", "a link to gone"),
        ("--tfrecord=fifo", 2, "--tfrecord: fifo is a FIFO"),
        ("--results=text", 2, "--results: text: expected a folder"),
        ("--results=absent", 2, "--results: absent"),
        ("--eval_10k=absent", 2, "--eval_10k: absent: no such file"),
        ("--eval_10k=tfrecord", 2, "--eval_10k: tfrecord"),
        ("--tfrecord=tfrecord --md5_list=absent", 2, "--md5_list: "),
        ("--tfrecord=tfrecord --md5_list=text", 2, "--md5_list: text"),
        ("--tfrecord=tfrecord --vocab_file=empty", 2, "--vocab_file: empty lacks [CLS]"),
        ("--tfrecord=tfrecord --vocab_file=latin1", 2, "--vocab_file: "),
        ("--tfrecord=tfrecord --num_workers=0", 2, "--num_workers=0: expected 1 or more"),
        ("--tfrecord=tfrecord --masked_lm_prob=2", 2, "--masked_lm_prob=2.0: expected 0 to 1"),
        ("--tfrecord=tfrecord --max_seq_length=x", 2, "--max_seq_length: invalid int value: 'x'"),
        ("--tfrecords=tfrecord", 2, "did you mean --tfrecord?"),
    ],
    "train.py": [
        ("--tfrecord_train=absent", 2, "--tfrecord_train: absent: no such file"),
        ("--tfrecord_train=empty_folder", 2, "--tfrecord_train: empty_folder: the folder holds no"),
        ("--tfrecord_train=with_dangling", 2, "--tfrecord_train: ", "a link to gone"),
        ("--tfrecord_eval='with_dangling/*'", 2, "--tfrecord_eval: ", "a link to gone"),
        ("--tfrecord_train=dangling", 2, "--tfrecord_train: dangling: a link to gone"),
        ("--idx_train=dangling --tfrecord_train=tfrecord", 2, "dangling"),
        ("--tfrecord_train=fifo", 2, "--tfrecord_train: fifo is a FIFO"),
        ("--tfrecord_train=s3://bucket/train", 2, "--tfrecord_train: ", "local files only"),
        ("--output_dir=s3://bucket/run", 2, "--output_dir: ", "local files only"),
        ("--idx_train=s3://bucket/idx", 2, "--idx_train: ", "local files only"),
        ("--tfrecord_train=text", 1, "--tfrecord_train: text: "),
        ("--tfrecord_eval=empty", 1, "--tfrecord_eval: empty: "),
        ("--tfrecord_train=tfrecord --idx_train=tfrecord", 2, "--idx_train: tfrecord is among the"),
        ("--tfrecord_train='tfrecord/*' --idx_train=./tfrecord/", 2, "is among the data of"),
        ("--tfrecord_train=tfrecord --output_dir=tfrecord", 2, "--output_dir: tfrecord is among"),
        ("--tfrecord_eval=instances --output_dir=./instances/", 2, "is among the data of"),
        ("--bert_config_file=absent --tfrecord_train=instances", 2, "--bert_config_file: "),
        ("--idx_train=idx/train/new", 2, "idx/train/new: neither it nor its parent folder exists"),
        ("--idx_train=text/idx", 2, "--idx_train: ", "text is a file, expected a folder"),
        ("--idx_train=empty_folder --idx_eval=./empty_folder", 2, "--idx_eval: ./empty_folder is"),
        ("--idx_train='*.idx'", 2, "--idx_train: *.idx: no such file"),
        ("--tfrecord_train=instances --idx_train=empty_folder", 2, "which needs no index"),
        ("--output_dir=text", 2, "--output_dir: ", "text is a file, expected a folder"),
        ("--output_dir=text --init_checkpoint=absent", 2, "text is a file, expected a folder",
         "--init_checkpoint: absent"),
        ("--output_dir=", 2, "arguments are required: --output_dir"),
        ("--vocab_file=empty", 2, "--vocab_file: "),
        ("--vocab_file=absent", 2, "--vocab_file: absent"),
        ("--bert_config_file=absent", 2, "--bert_config_file: "),
        ("--bert_config_file=text", 2, "--bert_config_file: text: not JSON"),
        ("--init_checkpoint=absent", 2, "--init_checkpoint: absent: no TensorFlow checkpoint"),
        ("--init_checkpoint=cut_model", 1, "cut_model/model.safetensors: "),
        ("--max_seq_length=512", 2, "tfrecord/a: examples of 64 tokens, but --max_seq_length=512"),
        ("--train_batch_size=0", 2, "--train_batch_size=0: expected 1 or more"),
        ("--learning_rate=-1", 2, "--learning_rate=-1.0: expected 0 or more"),
        ("--learning_rate=nan", 2, "--learning_rate=nan: expected 0 or more"),
        ("--num_train_steps=1e6", 2, "--num_train_steps: invalid int value: '1e6'"),
        ("--precision=fp8", 2, "--precision: invalid choice: 'fp8'"),
        ("--plugin=zero1 --device=cpu", 2, "--plugin=zero1: ", "on the CPU leave the flag out"),
        ("--tp_size=2", 2, "--tp_size=2"),
        ("--export", 1, "--export: out holds no checkpoint"),
        ("--dry_run --tfrecord_train=absent", 2, "--tfrecord_train: absent: no such file"),
        ("--dry_run --tfrecord_train=text", 1, "--tfrecord_train: text: "),
        ("--dry_run --train_batch_size=0", 2, "--train_batch_size=0: expected 1 or more"),
        ("--train_batchsize=8", 2, "did you mean --train_batch_size?"),
        ("@absent.args", 2, "absent.args"),
    ],
    "fill_mask.py": [
        ("--text=absent", 2, "--text: absent: no such file"),
        ("--text=texts", 2, "--text: texts is a folder, expected a file"),
        ("--text=text,vocab", 2, "--text: text,vocab are 2 files, expected one"),
        ("--num_sentences=0", 2, "--num_sentences=0: expected 1 or more"),
        ("--num_guesses=-1", 2, "--num_guesses=-1: expected 1 or more"),
        ("--num_guess=1", 2, "did you mean --num_guesses?"),
        ("", 2, "--output_dir: empty_folder has no flags.json"),
    ],
    "cleanup_scripts/cleanup_file.py": [
        ("--data=absent/wiki_*", 2, "--data 'absent/wiki_*' matches no extracted file"),
        ("--output_suffix=", 2, "--output_suffix '' would overwrite the extracted files"),
        ("--num_workers=0", 2, "--num_workers 0: expected at least 1"),
        ("--input_suffix=.1", 2, "extracted/wiki_00.1: no such file"),
        ("--data=latin1", 1, "latin1: byte 3 is 0xe9, expected UTF-8"),
        ("--num_worker=1", 2, "did you mean --num_workers?"),
        ("more", 2, "more"),
    ],
    "cleanup_scripts/clean_markup.py": [
        ("--data=absent/wiki_*", 2, "--data 'absent/wiki_*' matches no extracted file"),
        ("", 2, "extracted/wiki_00.1: no such file", "first run the step that writes '.1'"),
        ("--input_suffix= --data=latin1", 1, "latin1: byte 3 is 0xe9, expected UTF-8"),
    ],
    "cleanup_scripts/do_sentence_segmentation.py": [
        ("", 2, "extracted/wiki_00.2: no such file"),
        ("--input_suffix=.x --output_suffix=.x", 2, "the step would overwrite its input"),
        ("--input_suffix= --data=latin1", 1, "latin1: byte 3 is 0xe9, expected UTF-8"),
    ],
    "cleanup_scripts/separate_test_set.py": [
        ("--num_test_articles=-1", 2, "--num_test_articles -1: expected 0 or more"),
        ("--num_test_articles=1000", 1, "wiki_00: holds ", "smaller --num_test_articles"),
        ("--test_output=text/eval", 2, "--test_output: ", "text is a file, expected a folder"),
        ("--seed=x", 2, "--seed: invalid int value: 'x'"),
    ],
    "cleanup_scripts/do_gather.py": [
        ("--block_size=0", 2, "--block_size 0.0: expected a number of MB above 0"),
        ("--block_size=nan", 2, "--block_size nan: expected a number of MB above 0"),
        ("--num_outputs=0", 2, "--num_outputs 0: expected at least 1"),
        ("--data=latin1", 1, "latin1: byte 3 is 0xe9, expected UTF-8"),
        ("--out_dir=text", 2, "--out_dir: ", "text is a file, expected a folder"),
    ],
    "cleanup_scripts/extract_dump.py": [
        ("--dump=absent", 2, "--dump absent: no such file"),
        ("--dump=texts", 2, "--dump texts: no such file"),
        ("--file_size=1X", 2, "--file_size 1X: expected a size like 256K or 64M"),
        ("--out_dir=texts", 2, "--out_dir texts: holds other files"),
        ("--out_dir=text", 2, "--out_dir: ", "text is a file, expected a folder"),
        ("--num_workers=0", 2, "--num_workers 0: expected at least 1"),
        ("--wikiextractor=absent", 2, "--wikiextractor absent: no such file"),
        ("--dump=text", 1, "text: WikiExtractor found no article in it"),
    ],
    "cleanup_scripts/download.py": [
        ("--date=2020", 2, "--date '2020': expected YYYYMMDD"),
        ("--mlperf=texts", 2, "--mlperf texts: expected any of "),
        ("--source=usb", 2, "--source usb: expected mlcommons or drive"),
        ("--base_url=ftp://x", 2, "expected an address that begins with http://"),
        ("--md5=x=12", 2, "--md5 x=12: expected 32 hexadecimal digits"),
        ("--url=x", 2, "--url 'x': expected FILE=URL"),
        ("--retries=-1", 2, "--retries"),
        ("--retries=0 --timeout=5", 1, "127.0.0.1"),
        ("--out_dir=text", 2, "--out_dir: ", "text is a file, expected a folder"),
        ("--outdir=x", 2, "did you mean --out_dir?"),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of all kinds, right and wrong."""
    folder = tmp_path_factory.mktemp("typed")
    text = UNICODE_TEXT.read_bytes()
    for name in ("text", "texts/part-0", "texts/part-1", "with,comma", "with_dangling/part-a"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text)
    (folder / "vocab").write_bytes((ROOT / "vocab.txt").read_bytes())
    (folder / "link").symlink_to("text")
    (folder / "hardlink").hardlink_to(folder / "text")
    for name in ("dangling", "with_dangling/b", "with_dangling/part-b"):
        (folder / name).symlink_to("gone")
    os.mkfifo(folder / "fifo")
    (folder / "empty").write_bytes(b"")
    (folder / "empty_folder").mkdir()
    (folder / "latin1").write_bytes(b"caf\xe9\n")
    (folder / "gzip").write_bytes(b"\x1f\x8b\x08\x00" + bytes(60))
    make_examples(folder, ["a", "b"])
    for kind in ("tfrecord", "instances"):
        whole = (folder / kind / "a").read_bytes()
        name = "cut_records" if kind == "tfrecord" else "cut_instances"
        (folder / name).write_bytes(whole[: len(whole) * 2 // 3])
    made = "--input_dir=texts --output_dir=made --vocab_file=vocab --num_workers=1"
    run_script("create_pretraining_shards.py", *made.split(), cwd=folder)
    (folder / "extracted").mkdir()
    article = '<doc id="1" title="Name">\nName\n\nOne is one. Two is two.\n</doc>\n'
    (folder / "extracted/wiki_00").write_text(article)
    (folder / "dump.xml").write_text("<mediawiki></mediawiki>\n")
    config = json.loads((ROOT / "configs/bert_tiny.json").read_text())
    config |= {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "cut_model").mkdir()
    saved = {**config, "hidden_act": "gelu_new", "model_type": "bert"}
    (folder / "cut_model/config.json").write_text(json.dumps(saved))
    (folder / "cut_model/model.safetensors").write_bytes(b"\x40" + bytes(7) + b'{"bert')
    return folder


def listing(folder):
    return {
        os.path.join(where, name): os.lstat(os.path.join(where, name)).st_size
        for where, folders, names in os.walk(folder)
        for name in [*folders, *names]
    }


def run(script, *flags, cwd):
    """Those that need the frameworks run in a process that has imported them."""
    if script in NEED_FRAMEWORKS:
        return script_server("tests.warm_training").start(ROOT / script, *flags, cwd=cwd).finished()
    return run_script(script, *flags, cwd=cwd, check=False)


@pytest.mark.parametrize(
    "script, row",
    [
        pytest.param(script, row, marks=[pytest.mark.slow] if script in NEED_FRAMEWORKS else [])
        for script in ROWS
        for row in ROWS[script]
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value.removesuffix(".py"),
)  # fmt: skip
def test_is_refused(folder, script, row):
    flags, code, *words = row
    before = listing(folder)
    typed = shlex.split(f"{COMMANDS[script]} {flags}")
    process = run(script, *typed, cwd=folder)
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith("error: ") and "Traceback" not in process.stderr
    for word in words:
        assert word in process.stderr
    after = listing(folder)
    made = {path for path in after if os.path.isdir(path)} - before.keys()
    assert code == 1 or not made
    assert after == before | {path: after[path] for path in made}
    shutil.rmtree(folder / "out", ignore_errors=True)


@pytest.mark.parametrize("script", sorted(COMMANDS.keys() - NEED_NONE))
def test_required_flags_and_help(script, tmp_path):
    nothing = run_script(script, cwd=tmp_path, check=False)
    assert nothing.returncode == 2 and nothing.stderr.startswith("error: ")
    assert nothing.stderr.count("\n") == 1 and f"python3 {script} --help" in nothing.stderr
    help_text = run_script(script, "--help", cwd=tmp_path).stdout
    assert max(map(len, help_text.splitlines())) <= 100
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "script, flags, words",
    [
        (
            "create_pretraining_data.py",
            "--do_lower_case=False",
            "no token has an upper-case",
        ),
        ("create_pretraining_data.py", "--vocab_file=cased", "tokens have upper-case letters"),
        ("create_pretraining_data.py", "--vocab_file=tiny", "only 7 tokens"),
        ("create_pretraining_data.py", "--vocab_file=repeated", "line 30523 repeats 'the'"),
        ("create_pretraining_data.py", "--vocab_file=blank", "line 30523 is empty"),
        ("create_pretraining_data.py", "--input_file=long", "long: line 2 has 400,000 bytes"),
        ("pick_eval_samples.py", "--num_examples_to_pick=10000", "each is picked"),
    ],
)
def test_is_done_and_said(folder, tmp_path, script, flags, words):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, symlinks=True, ignore=lambda *_: ["fifo"])
    vocab = (ROOT / "vocab.txt").read_text()
    (tmp_path / "cased").write_text(vocab.replace("\na", "\nA"))
    (tmp_path / "tiny").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nof\n")
    (tmp_path / "repeated").write_text(vocab + "the\n")
    (tmp_path / "blank").write_text(vocab + "\n\nmore\n")
    (tmp_path / "long").write_text("one\n" + "two " * 100_000 + "\n\nthree\n")
    process = run_script(script, *f"{COMMANDS[script]} {flags}".split(), cwd=tmp_path)
    assert words in process.stderr and (tmp_path / "out").stat().st_size > 0


def test_a_link_as_output_is_written_through(folder, tmp_path):
    (tmp_path / "target").write_text("older")
    (tmp_path / "out").symlink_to("target")
    shutil.copy(folder / "text", tmp_path)
    shutil.copy(folder / "vocab", tmp_path)
    flags = COMMANDS["create_pretraining_data.py"]
    run_script("create_pretraining_data.py", *flags.split(), cwd=tmp_path)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "target").stat().st_size > 1000
