"""bert/common/files.py: what is left after a kill, and paths with a scheme."""

import fcntl
import os
import subprocess
import sys

import fsspec
import pytest
from conftest import ROOT, UNICODE_TEXT, assert_refused, create, run_script
from examples_of_text import SETTINGS

import create_pretraining_data
from bert.common import files, path_flags
from bert.generation import shards

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


def test_local_paths_import_neither_fsspec_nor_tensorflow(tmp_path):
    flags = [
        f"--input_file={UNICODE_TEXT}",
        f"--output_file={tmp_path}/out",
        "--show_examples=1",
        *FLAGS,
    ]
    create(UNICODE_TEXT, tmp_path / "once", *FLAGS)  # compiles, where no test has done so before
    code = (
        f"import sys, create_pretraining_data as c; c.main({flags}); "
        "print({'tensorflow', 'fsspec'} & sys.modules.keys())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.endswith("\nset()\n") and process.stderr == ""


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
    """A folder in fsspec's file system in memory."""
    memory = fsspec.filesystem("memory")
    memory.makedirs("/folder")
    yield "memory://folder"
    memory.rm("/folder", recursive=True)


@pytest.fixture(scope="module")
def bucket():
    """A bucket on an S3 server at 127.0.0.1; its name, with the environment that leads there."""
    from moto.server import ThreadedMotoServer  # a second of imports

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


class TestRemote:
    """memory:// lives in this process's memory; file:// also in another's."""

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
            path_flags.list_folder_or_pattern(ram)
            == [f"{ram}/a", f"{ram}/b"]
            == path_flags.expand_patterns(f"{ram}/*")
        )
        assert (
            b"".join(files.read_blocks(f"{ram}/a", 2)) == b"three"
            and files.size_of(f"{ram}/a") == 5
        )
        files.remove(f"{ram}/a")
        files.remove(f"{ram}/a")
        assert path_flags.list_folder_or_pattern(ram) == [f"{ram}/b"]

    def test_leftovers(self, ram):
        with files.atomic_writer(f"{ram}/.a.01234567.tmp") as file:
            file.write(b"half")
        assert files.remove_leftovers(ram, {"a"}) == 1
        assert files.remove_leftovers(f"{ram}/absent", {"a"}) == 0

    def test_errors_name_the_path(self, ram):
        with pytest.raises(FileNotFoundError, match="memory://folder/absent"):
            files.read_bytes(f"{ram}/absent")
        with pytest.raises(files.DataError, match="memory://folder/absent"):
            path_flags.expand_patterns(f"{ram}/absent*")
        assert "would overwrite" in path_flags.output_problems(f"{ram}/a", f"{ram}/a")[0]
        assert "is a folder" in path_flags.output_problems(ram)[0]
        assert path_flags.output_problems(f"{ram}/new") == []

    def test_same_bytes_by_a_scheme(self, tmp_path):
        (tmp_path / "text-0").write_bytes(UNICODE_TEXT.read_bytes())
        create(UNICODE_TEXT, tmp_path / "local", "--dupe_factor=2")
        process = run_script(
            "create_pretraining_data.py", f"--input_file=file://{tmp_path}/text-*",
            f"--output_file=file://{tmp_path}/remote", f"--vocab_file=file://{ROOT}/vocab.txt",
            "--dupe_factor=2",
        )  # fmt: skip
        assert process.stderr == ""
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
            "nosuch://bucket/text: Protocol not known: nosuch",
            "--show_examples",
            "file:///absent/vocab: no such file",
        ):
            assert words in str(error.value)
        assert os.listdir(tmp_path) == []


class TestS3:
    def test_part_and_its_bytes(self, bucket, tmp_path):
        create(UNICODE_TEXT, tmp_path / "local", "--dupe_factor=2")
        store = fsspec.filesystem("s3")
        store.put_file(str(UNICODE_TEXT), "bucket/texts/part-0")
        flags = ["--dupe_factor=2", f"--vocab_file={ROOT}/vocab.txt"]
        output = f"--output_file={bucket}/records/part-0"
        process = run_script(
            "create_pretraining_data.py", f"--input_file={bucket}/texts/part-*", output, *flags
        )
        assert process.stderr == ""
        assert store.cat_file("bucket/records/part-0") == (tmp_path / "local").read_bytes()
        assert store.ls("bucket/records", detail=False) == ["bucket/records/part-0"]

        absent = run_script(
            "create_pretraining_data.py", f"--input_file={bucket}/absent", output, *flags,
            check=False,
        )  # fmt: skip
        assert_refused(absent, "--input_file: s3://bucket/absent: no such file")

    def test_shard_and_its_manifest(self, bucket):
        fsspec.filesystem("s3").put_file(str(UNICODE_TEXT), "bucket/all/part-0")
        shard = shards.Shard(f"{bucket}/all/part-0", f"{bucket}/made/part-0")
        vocab = str(ROOT / "vocab.txt")
        recipe = shards.Recipe(SETTINGS, vocab, shards.fingerprint(vocab), "tfrecord")
        assert shards.status(shard, recipe) == shards.Status("")
        manifest = shards.make(shard, recipe)
        assert shards.status(shard, recipe, reads_output=True).manifest == manifest
        assert shards.status(shard, recipe._replace(output_format="instances")).replaces
        assert fsspec.filesystem("s3").find("bucket/made") == [
            "bucket/made/.manifest/part-0.json", "bucket/made/part-0",
        ]  # fmt: skip

    def test_no_server(self, tmp_path):
        environment = os.environ | {
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_MAX_ATTEMPTS": "1",
        }  # fmt: skip
        process = run_script(
            "create_pretraining_data.py", "--input_file=s3://bucket/a", "--output_file=out",
            f"--vocab_file={ROOT}/vocab.txt", cwd=tmp_path, environment=environment, check=False,
        )  # fmt: skip
        assert_refused(process, "--input_file: s3://bucket/a: ", "127.0.0.1:9")
        assert os.listdir(tmp_path) == []
