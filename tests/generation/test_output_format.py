"""--output_format=instances of both commands, and instances_to_tfrecord.py."""

import json
import os
import shutil

import pytest
from conftest import ROOT, UNICODE_TEXT, assert_refused, create, run_script
from examples_of_text import make_examples

from bert.examples.instance_file import InstanceFile

FLAGS = ("--max_seq_length=64", "--max_predictions_per_seq=10", "--dupe_factor=2")


def shards(folder, *flags, check=True):
    return run_script(
        "tests/shards_without_ray.py", f"--input_dir={folder}/texts", f"--output_dir={folder}/out",
        f"--vocab_file={ROOT}/vocab.txt", "--num_workers=2", *FLAGS, *flags, check=check,
    )  # fmt: skip


def convert(instances, output, *flags, check=True):
    return run_script(
        "instances_to_tfrecord.py", f"--instances={instances}", f"--output_dir={output}", *flags,
        check=check,
    )  # fmt: skip


def test_single_command(tmp_path):
    _, (expected,) = make_examples(tmp_path / "expected", ["part"])
    words = []
    for output_format in ("tfrecord", "instances"):
        process = create(
            UNICODE_TEXT, tmp_path / "out", *FLAGS, f"--output_format={output_format}",
            "--show_examples=2",
        )  # fmt: skip
        words.append([line for line in process.stdout.split("\n") if str(tmp_path) not in line])
    assert words[0] == words[1] and len(words[0]) > 8
    with open(expected, "rb") as file:
        assert (tmp_path / "out").read_bytes() == file.read()


def test_unknown_format(tmp_path):
    process = create(UNICODE_TEXT, tmp_path / "out", "--output_format=parquet", check=False)
    assert process.returncode == 2 and "choose from" in process.stderr
    assert os.listdir(tmp_path) == []


def test_shards_and_conversion(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / f"texts/part-{number}").write_bytes(
            (UNICODE_TEXT.read_bytes() + b"\n\n") * (number + 1)
        )
    process = shards(tmp_path, "--output_format=instances")
    assert "3: 3 made, 0 skipped, 0 failed" in process.stdout
    manifest = json.loads((tmp_path / "out/.manifest/part-1.json").read_text())
    assert manifest["format"] == "instances"
    assert manifest["output"]["bytes"] == (tmp_path / "out/part-1").stat().st_size
    assert manifest["output"]["records"] == InstanceFile(str(tmp_path / "out/part-1")).num_records
    process = shards(tmp_path, "--output_format=instances")
    assert "3: 0 made, 3 skipped, 0 failed" in process.stdout
    assert (
        "3 of 3 parts are whole" in shards(tmp_path, "--output_format=instances", "--check").stdout
    )

    # The TFRecord files of them, some at a time.
    convert(tmp_path / "out/part-1", tmp_path / "converted")
    before = (tmp_path / "converted/part-1").stat()
    process = convert(tmp_path / "out", tmp_path / "converted", "--num_workers=2")
    assert "wrote 3 of 3 files" in process.stdout and process.stderr == ""
    assert (tmp_path / "converted/part-1").stat() == before
    assert sorted(os.listdir(tmp_path / "converted")) == ["part-0", "part-1", "part-2"]

    # The same folder for the other format: replaced only if asked, and said why.
    process = shards(tmp_path, check=False)
    assert_refused(process, "part-2: --output_format was instances, is tfrecord", "--overwrite")
    process = shards(tmp_path, "--overwrite")
    assert "part-2: --output_format was instances, is tfrecord" in process.stderr
    for number in range(3):
        name = f"part-{number}"
        created = (tmp_path / "out" / name).read_bytes()
        assert created == (tmp_path / "converted" / name).read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """([TFRecord files], [instance files]), two each."""
    return make_examples(tmp_path_factory.mktemp("files"), ["a", "b"])


class TestRefusals:
    def test_tfrecord(self, files, tmp_path):
        process = convert(files[0][0], tmp_path / "out", check=False)
        assert_refused(process, "--instances: ", f"{files[0][0]} is not an instance file")
        assert os.listdir(tmp_path) == []

    def test_folder_of_the_instances(self, files):
        process = convert(os.path.dirname(files[1][0]), os.path.dirname(files[1][0]), check=False)
        assert_refused(process, "--output_dir: ", "would overwrite an input")

    def test_nothing(self, tmp_path):
        process = convert(tmp_path / "absent", tmp_path / "out", "--num_workers=0", check=False)
        assert_refused(process, f"--instances: {tmp_path}/absent: no such file", "--num_workers=0")

    def test_two_of_one_name(self, files, tmp_path):
        copy = shutil.copy(files[1][0], tmp_path / "a")
        process = convert(f"{files[1][0]},{copy}", tmp_path / "out", check=False)
        assert_refused(process, "two files of the same name")

    def test_corrupt_file_stops_no_other(self, files, tmp_path):
        folder = shutil.copytree(os.path.dirname(files[1][0]), tmp_path / "instances")
        with open(folder / "a", "r+b") as file:
            file.seek(-100, 2)
            file.write(b"\1\2\3\4")
        process = convert(folder, tmp_path / "out", check=False)
        assert_refused(process, f"{folder}/a: the file does not have its checksum")
        assert "wrote 1 of 2 files" in process.stdout
        assert os.listdir(tmp_path / "out") == ["b"]

    def test_another_file_in_its_place_stays(self, files, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/a").write_bytes(b"somebody's")
        process = convert(os.path.dirname(files[1][0]), tmp_path / "out", check=False)
        assert_refused(process, f"{tmp_path}/out/a: there is a file of 10 bytes", "move it away")
        assert (tmp_path / "out/a").read_bytes() == b"somebody's"
        assert (tmp_path / "out/b").stat().st_size == os.path.getsize(files[0][1])
