"""The tools say the same of instance files as of the TFRecord files of the same examples."""

import os
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT, assert_refused, run_script
from examples_of_text import make_examples, tokenizer

from bert.examples.instance_file import InstanceFile
from bert.verification.example_check import make_rules
from bert.verification.file_report import eval_digest, inspect_tfrecord

SHAPE = ("--max_seq_length=64", "--max_predictions_per_seq=10")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """([TFRecord files], [instance files]), two each."""
    return make_examples(tmp_path_factory.mktemp("files"), ["part-0", "part-1"])


@pytest.fixture
def folder(files, tmp_path):
    """A copy of the instance files."""
    return shutil.copytree(os.path.dirname(files[1][0]), tmp_path / "instances")


def outputs(files, script, *flags):
    """What a script prints of a folder of either kind, without folders and seconds."""
    for paths in files:
        where = os.path.dirname(paths[0])
        stdout = run_script(script, *(flag.format(where) for flag in flags)).stdout
        yield re.sub(r"\(\d+\.\d s\)| at byte \d+", "", stdout.replace(where, ""))


def test_statistics(files):
    records, instances = outputs(files, "inspect_tfrecord.py", "{}", "--stats")
    assert records == instances and "next sentence: " in records


def test_words(files):
    records, instances = outputs(
        files, "inspect_tfrecord.py", "{}/part-1", "--record=3", "--count=2"
    )
    assert records == instances and "/part-1: record 4" in records


def test_verification(files):
    records, instances = outputs(
        files, "verify_dataset.py", "--tfrecord={}/part-0", "--eval_10k={}/part-1", "--own_data",
        *SHAPE,
    )  # fmt: skip
    assert records == instances and "whole: all 11 checks passed" in instances


def test_content_hashes_and_digest(files):
    rules = make_rules(64, 10, 0.15, tokenizer().vocab)
    for record_path, instance_path in zip(*files):
        records, instances = (
            inspect_tfrecord(path, rules) for path in (record_path, instance_path)
        )
        assert len(records.sketch) == records.num_examples - records.num_repeated
        assert np.array_equal(records.sketch, instances.sketch)
        assert records.order == instances.order
        assert (records.num_bytes, records.totals) == (instances.num_bytes, instances.totals)
        assert eval_digest(record_path) == eval_digest(instance_path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda path: os.truncate(path, 5000), ("part-0: 5,000 bytes, its header says",)),
        (lambda path: flip(path, -50), ("part-0: the file does not have its checksum",)),
    ],
)
def test_corrupt_file_fails_the_verification(folder, change, words):
    change(folder / "part-0")
    process = run_script(
        "verify_dataset.py", f"--tfrecord={folder}", "--own_data", *SHAPE, check=False
    )
    assert process.returncode == 1 and "BROKEN" in process.stdout
    for word in words:
        assert word in process.stdout


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place, 2)
        (value,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([value ^ 1]))


def test_examples_of_other_flags_fail_the_verification(files):
    process = run_script(
        "verify_dataset.py", f"--tfrecord={os.path.dirname(files[1][0])}", "--own_data",
        "--max_seq_length=128", "--max_predictions_per_seq=10", check=False,
    )  # fmt: skip
    assert process.returncode == 1 and "part-0: record 0: input_ids has 64" in process.stdout


def test_mixed_folder_is_refused(files, folder):
    shutil.copy(files[0][1], folder / "part-1")
    for script, flag in (("verify_dataset.py", "--tfrecord"),):
        process = run_script(script, f"{flag}={folder}", check=False)
        assert_refused(process, "TFRecord files and instance files in one data set")


def test_pick(files, tmp_path):
    """The same TFRecord file from either kind, and from the picked instances."""
    pick = ("pick_eval_samples.py", *SHAPE, "--num_examples_to_pick=20")
    for name, path in (("a", files[0][0]), ("b", files[1][0])):
        run_script(*pick, f"--input_tfrecord={path}", f"--output_tfrecord={tmp_path}/{name}")
    expected = (tmp_path / "a").read_bytes()
    assert (tmp_path / "b").read_bytes() == expected and expected
    run_script(
        *pick, f"--input_tfrecord={files[1][0]}", f"--output_tfrecord={tmp_path}/instances",
        "--output_format=instances",
    )  # fmt: skip
    assert '"picked": 20' in InstanceFile(str(tmp_path / "instances")).header.made_of
    run_script(
        "instances_to_tfrecord.py", f"--instances={tmp_path}/instances",
        f"--output_dir={tmp_path}/out",
    )  # fmt: skip
    assert (tmp_path / "out/instances").read_bytes() == expected


def test_pick_refusals(files, tmp_path):
    output = f"--output_tfrecord={tmp_path}/out"
    process = run_script(
        "pick_eval_samples.py", f"--input_tfrecord={files[0][0]}", output, *SHAPE,
        "--output_format=instances", check=False,
    )  # fmt: skip
    assert_refused(process, "--output_format=instances: ", f"{files[0][0]} is no instance file")
    process = run_script(
        "pick_eval_samples.py", f"--input_tfrecord={files[1][0]}", output, check=False
    )
    assert_refused(process, f"{files[1][0]}: record 0: input_ids has 64 values, expected 512")
    assert os.listdir(tmp_path) == []


def test_no_index_is_needed(files, tmp_path):
    process = run_script(
        "make_idx.py", f"--tfrecord_train={os.path.dirname(files[1][0])}",
        f"--output_idx={tmp_path}/idx", check=False,
    )  # fmt: skip
    assert_refused(process, "--tfrecord_train: ", "is an instance file, which needs no index")
    assert os.listdir(tmp_path) == []


def test_vocabulary_of_another_size(files, tmp_path):
    lines = (ROOT / "vocab.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "vocab").write_text("".join(lines[:2000]), encoding="utf-8")
    process = run_script(
        "inspect_tfrecord.py", os.path.dirname(files[1][0]), f"--vocab_file={tmp_path}/vocab",
        "--stats", check=False,
    )  # fmt: skip
    assert_refused(process, "made with a vocabulary of 30,522 tokens")
