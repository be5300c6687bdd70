"""bert/common/files.py: what is left after a kill, and paths with a scheme, which go through
TensorFlow.
"""

import fcntl
import os
import subprocess
import sys

import pytest
from conftest import ROOT, UNICODE_TEXT, create, run_script

import create_pretraining_data
from bert.common import files

LOCK_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB
FLAGS = ("--dupe_factor=2", f"--vocab_file={ROOT}/vocab.txt")


def test_leftovers_are_distinguished_from_other_files(tmp_path):
    names = [
        ".a.01234567.tmp",
        ".a.89abcdef.tmp",
        ".b.01234567.tmp",
        ".a.0123456.tmp",
        ".a.0123456g.tmp",
        "a.01234567.tmp",
        ".a",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert files.remove_leftovers(str(tmp_path), {"a", "c"}) == 2
    assert sorted(os.listdir(tmp_path)) == sorted(names[2:])
    assert files.remove_leftovers(f"{tmp_path}/absent", {"a"}) == 0


def test_local_paths_do_not_import_tensorflow(tmp_path):
    flags = [
        f"--input_file={UNICODE_TEXT}",
        f"--output_file={tmp_path}/out",
        "--show_examples=1",
        *FLAGS,
    ]
    create(UNICODE_TEXT, tmp_path / "once", *FLAGS)  # compiles, where no test has done so before
    code = (
        f"import sys, create_pretraining_data as c; c.main({flags}); "
        "print('tensorflow' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.endswith("\nFalse\n") and process.stderr == ""


def test_a_second_lock_is_refused_until_the_file_is_closed(tmp_path):
    with open(tmp_path / "a", "w") as first, open(tmp_path / "a", "w") as second:
        assert files.lock(first)
        assert not files.lock(second)
        with pytest.raises(BlockingIOError), files.locked(str(tmp_path / "a"), LOCK_NOW):
            pass
    with files.locked(str(tmp_path / "a"), LOCK_NOW):
        pass


@pytest.fixture
def ram():
    """A folder in TensorFlow's file system in memory."""
    import tensorflow as tf

    tf.io.gfile.makedirs("ram://folder")
    yield "ram://folder"
    tf.io.gfile.rmtree("ram://folder")


class TestRemote:
    """ram:// lives in this process's memory; file:// also in another's."""

    def test_written_whole_or_not_at_all(self, ram):
        with files.atomic_writer(f"{ram}/a") as file:
            assert file.write(memoryview(b"one")) == 3
            assert files.size_of(f"{ram}/a") is None
        assert files.read_bytes(f"{ram}/a") == b"one"
        with pytest.raises(KeyboardInterrupt), files.atomic_writer(f"{ram}/a") as file:
            file.write(b"half")
            raise KeyboardInterrupt
        with files.atomic_writer(f"{ram}/b") as file:
            file.write(b"2")
        with files.atomic_writer(f"{ram}/a") as file:  # in the place of an older one
            file.write(b"three")
        assert (
            files.list_folder_or_pattern(ram)
            == [f"{ram}/a", f"{ram}/b"]
            == files.expand_patterns(f"{ram}/*")
        )
        assert (
            b"".join(files.read_blocks(f"{ram}/a", 2)) == b"three"
            and files.size_of(f"{ram}/a") == 5
        )
        files.remove(f"{ram}/a")
        files.remove(f"{ram}/a")
        assert files.list_folder_or_pattern(ram) == [f"{ram}/b"]

    def test_leftovers(self, ram):
        with files.atomic_writer(f"{ram}/.a.01234567.tmp") as file:
            file.write(b"half")
        assert files.remove_leftovers(ram, {"a"}) == 1
        assert files.remove_leftovers(f"{ram}/absent", {"a"}) == 0

    def test_errors_name_the_path(self, ram):
        with pytest.raises(FileNotFoundError, match="ram://folder/absent"):
            files.read_bytes(f"{ram}/absent")
        with pytest.raises(files.DataError, match="ram://folder/absent"):
            files.expand_patterns(f"{ram}/absent*")
        assert "would overwrite" in files.output_problems(f"{ram}/a", f"{ram}/a")[0]
        assert "is a folder" in files.output_problems(ram)[0]
        assert files.output_problems(f"{ram}/new") == []

    def test_same_bytes_by_a_scheme(self, tmp_path):
        (tmp_path / "text-0").write_bytes(UNICODE_TEXT.read_bytes())
        create(UNICODE_TEXT, tmp_path / "local", "--dupe_factor=2")
        process = run_script(
            "create_pretraining_data.py", f"--input_file=file://{tmp_path}/text-*",
            f"--output_file=file://{tmp_path}/remote", f"--vocab_file=file://{ROOT}/vocab.txt",
            "--dupe_factor=2",
        )  # fmt: skip
        assert process.stderr == "", "TensorFlow's banners are not shown"
        assert (tmp_path / "remote").read_bytes() == (tmp_path / "local").read_bytes()
        assert sorted(os.listdir(tmp_path)) == ["local", "remote", "text-0"]

    def test_refusals(self, tmp_path):
        flags = [
            "--input_file=nosuch://bucket/text", f"--output_file=file://{tmp_path}/out",
            "--show_examples=1", "--vocab_file=file:///absent/vocab",
        ]  # fmt: skip
        with pytest.raises(files.DataError) as error:
            create_pretraining_data.main(flags)
        for words in (
            "nosuch://bucket/text: File system scheme",
            "--show_examples",
            "file:///absent/vocab: no such file",
        ):
            assert words in str(error.value)
        assert os.listdir(tmp_path) == []
