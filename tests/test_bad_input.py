"""What is typed wrong, at all scripts: exit code, words, and nothing left behind.

Each row is a command that would work, with flags behind it that make it wrong (the last one wins).
"""

import os
import shlex
import shutil

import pytest
from conftest import ROOT, UNICODE_TEXT, run_script
from examples_of_text import make_examples

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
}
ALL = tuple(COMMANDS)

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
    return folder


def listing(folder):
    return {
        os.path.join(where, name): os.lstat(os.path.join(where, name)).st_size
        for where, folders, names in os.walk(folder)
        for name in [*folders, *names]
    }


@pytest.mark.parametrize(
    "script, row", [(script, row) for script in ROWS for row in ROWS[script]],
    ids=lambda value: value[0] if isinstance(value, tuple) else value.removesuffix(".py"),
)  # fmt: skip
def test_is_refused(folder, script, row):
    flags, code, *words = row
    before = listing(folder)
    typed = shlex.split(f"{COMMANDS[script]} {flags}")
    process = run_script(script, *typed, cwd=folder, check=False)
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith("error: ") and "Traceback" not in process.stderr
    for word in words:
        assert word in process.stderr
    after = listing(folder)
    made = {path for path in after if os.path.isdir(path)} - before.keys()
    assert code == 1 or not made
    assert after == before | {path: after[path] for path in made}
    shutil.rmtree(folder / "out", ignore_errors=True)


@pytest.mark.parametrize("script", ALL)
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
