"""create_pretraining_shards.py: the bytes of the single command, whatever is killed; manifests that
notice what changed.
"""

import contextlib
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT, UNICODE_TEXT, assert_refused, create, run_script

from bert.common.files import list_folder_or_pattern
from bert.generation import shards

COPIES = {
    "part-00000-of-00004": 1,
    "part-00001-of-00004": 3,
    "part-00002-of-00004": 2,
    "part-00003-of-00004": 4,
}
KILLED = ("--dupe_factor=300", "--max_seq_length=64")  # half a second at least for each part


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, copies in COPIES.items():
        (folder / name).write_bytes((UNICODE_TEXT.read_bytes() + b"\n\n") * copies)
    (folder / "eval.txt").write_bytes(b"no part\n")
    return folder


def command(texts, output, *flags):
    return [
        f"--input_dir={texts}",
        f"--output_dir={output}",
        f"--vocab_file={ROOT}/vocab.txt",
        "--num_workers=2",
        *flags,
    ]


def make(texts, output, *flags, check=True):
    return run_script("create_pretraining_shards.py", *command(texts, output, *flags), check=check)


def contents(folder):
    return {
        name: (folder / name).read_bytes()
        for name in os.listdir(folder)
        if not name.startswith(".")
    }


def single_command(texts, folder, *flags):
    """The same parts by create_pretraining_data.py."""
    for name in COPIES:
        create(texts / name, folder / name, *flags)
    return contents(folder)


def ray_folders():
    """Those that processes which have ended left; others may be at work beside this test."""
    folders = glob.glob("/tmp/bert-ray-*-*")
    return {path for path in folders if not psutil.pid_exists(int(path.split("-")[2]))}


@pytest.fixture(scope="module")
def first_run(texts, tmp_path_factory):
    """One part is corrupt, and a killed run left temporary files; returns (process, folder of the
    records).
    """
    output = tmp_path_factory.mktemp("first") / "tfrecord"
    (output / ".manifest").mkdir(parents=True)
    (output / ".part-00000-of-00004.0123abcd.tmp").write_bytes(b"half")
    (output / ".manifest/.part-00000-of-00004.json.0123abcd.tmp").write_bytes(b"half")
    (output / ".part-00000-of-00004.notes.tmp").write_bytes(b"somebody's")
    whole = (texts / "part-00002-of-00004").read_bytes()
    (texts / "part-00002-of-00004").write_bytes(b"fine\nbad \xff\n")
    before = ray_folders()
    process = make(texts, output, check=False)
    assert ray_folders() == before
    (texts / "part-00002-of-00004").write_bytes(whole)
    return process, output


def test_first_run(first_run):
    process, output = first_run
    assert_refused(process, "part-00002-of-00004: line 2, byte 9: found 0xff")
    assert process.stderr.count("\n") == 1, (
        "Ray is silent, and there is no progress where there is no terminal"
    )
    assert "4: 3 made, 0 skipped, 1 failed" in process.stdout and "longest part" in process.stdout
    names = [name for name in os.listdir(output) if name.startswith(".")]
    assert sorted(names) == [".manifest", ".part-00000-of-00004.notes.tmp"]
    assert sorted(os.listdir(output / ".manifest")) == [
        "part-00000-of-00004.json", "part-00001-of-00004.json", "part-00003-of-00004.json",
        "parts.lock", "run.lock",
    ]  # fmt: skip


def test_manifests_are_no_tfrecords(first_run):
    """make_idx.py and the loader take what this function returns."""
    names = [os.path.basename(path) for path in list_folder_or_pattern(str(first_run[1]))]
    assert names == sorted(set(COPIES) - {"part-00002-of-00004"})


def test_second_run_makes_what_is_missing_and_asks_before_it_replaces(texts, first_run, tmp_path):
    _, output = first_run
    with open(output / "part-00003-of-00004", "ab") as file:
        file.write(b"x")
    text = (texts / "part-00001-of-00004").read_bytes()
    (texts / "part-00001-of-00004").write_bytes(text.replace(b"fox", b"dog"))
    untouched = (output / "part-00000-of-00004").stat().st_mtime_ns
    before = contents(output)
    process = make(texts, output, check=False)
    assert_refused(process, "finished parts differ", "part-00001-of-00004: its text changed")
    assert process.returncode == 1 and contents(output) == before
    process = make(texts, output, "--overwrite")
    assert "4: 3 made, 1 skipped, 0 failed" in process.stdout
    assert "made again: part-00001-of-00004: its text changed" in process.stderr
    assert "made again: part-00003-of-00004: its TFRecord file has" in process.stderr
    assert "part-00002" not in process.stderr, "it was never made"
    assert (output / "part-00000-of-00004").stat().st_mtime_ns == untouched
    assert contents(output) == single_command(texts, tmp_path)

    # All is done now: no Ray, no change; --check reads the records too.
    process = make(texts, output)
    assert "4: 0 made, 4 skipped, 0 failed" in process.stdout and process.stderr == ""
    assert "4 of 4 parts are whole" in make(texts, output, "--check").stdout
    records = bytearray((output / "part-00000-of-00004").read_bytes())
    records[5000] ^= 1
    (output / "part-00000-of-00004").write_bytes(records)
    (output / "part-00001-of-00004").unlink()
    before = contents(output)
    process = make(texts, output, "--check", check=False)
    assert_refused(
        process,
        "part-00000-of-00004: its TFRecord file is corrupt",
        "part-00001-of-00004: its TFRecord file is gone",
    )
    assert "2 of 4 parts are whole" in process.stdout and contents(output) == before
    assert "without --check but --overwrite" in process.stderr
    make(texts, output, "--overwrite")  # as it advises
    assert "4 of 4 parts are whole" in make(texts, output, "--check").stdout


def test_check_of_nothing(texts, tmp_path):
    process = make(texts, tmp_path / "new", "--check", check=False)
    assert_refused(process, "part-00003-of-00004: not made yet")
    assert os.listdir(tmp_path) == []


def test_files_of_other_texts_are_reported(texts, tmp_path):
    """The loader takes every file of a folder."""
    for number in range(5):
        (tmp_path / f"part-{number:05d}-of-00005").write_bytes(b"old")
    process = make(texts, tmp_path, "--check", check=False)
    assert_refused(
        process,
        "also holds part-00000-of-00005, part-00001-of-00005, part-00002-of-00005 and 2 more",
    )


class TestStatus:
    @pytest.fixture
    def shard(self, tmp_path):
        (tmp_path / "text").write_bytes(UNICODE_TEXT.read_bytes())
        (tmp_path / "vocab").write_bytes((ROOT / "vocab.txt").read_bytes())
        shard = shards.Shard(f"{tmp_path}/text", f"{tmp_path}/records")
        shards.make(shard, self.recipe(tmp_path))
        assert shards.status(shard, self.recipe(tmp_path)).problem is None
        return shard

    @staticmethod
    def recipe(folder, **changed):
        settings = shards.Settings(True, False, 64, 10, 0.15, 0.1, 1, 12345)._replace(**changed)
        vocabulary = shards.fingerprint(f"{folder}/vocab")
        return shards.Recipe(settings, f"{folder}/vocab", vocabulary, "tfrecord")

    @pytest.mark.parametrize("name", shards.Settings._fields)
    def test_changed_flag_is_reported(self, shard, tmp_path, name):
        old = getattr(self.recipe(tmp_path).settings, name)
        recipe = self.recipe(tmp_path, **{name: not old if isinstance(old, bool) else old + 1})
        assert shards.status(shard, recipe).problem.startswith(f"--{name} was {old}, is ")

    @pytest.mark.parametrize(
        "name, expected", [("text", "its text changed"), ("vocab", "the vocabulary changed")]
    )
    def test_changed_file_of_equal_size(self, shard, tmp_path, name, expected):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"the", b"eht"))
        assert shards.status(shard, self.recipe(tmp_path)).problem == expected

    def test_other_unicode(self, shard, tmp_path, monkeypatch):
        monkeypatch.setattr(shards, "UNICODE", "14.0.0")
        shards.make(shard, self.recipe(tmp_path))
        monkeypatch.undo()
        expected = "an earlier version made it, with Unicode 14.0.0; MLPerf's is 11.0.0"
        assert shards.status(shard, self.recipe(tmp_path)).problem == expected

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": 1}'])
    def test_corrupt_manifest(self, shard, tmp_path, text):
        with open(shard.manifest, "w") as file:
            file.write(text)
        assert shards.status(shard, self.recipe(tmp_path)).problem == "its manifest cannot be read"

    def test_no_manifest(self, shard, tmp_path):
        os.remove(shard.manifest)
        status = shards.status(shard, self.recipe(tmp_path))
        assert "no manifest" in status.problem and status.replaces

    def test_manifest_says_in_work_before_the_records_change(self, shard, tmp_path, monkeypatch):
        """Else a run with other flags that is killed right after it replaced the records would be
        believed to be of the old ones.
        """

        def power_cut(*args, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(shards, "generate", power_cut)
        with pytest.raises(KeyboardInterrupt):
            shards.make(shard, self.recipe(tmp_path, random_seed=1))
        assert os.path.exists(shard.output)
        assert shards.status(shard, self.recipe(tmp_path)) == shards.Status("", None, False)

    def test_manifest_records_what_was_made(self, shard, tmp_path):
        with open(shard.manifest) as file:
            manifest = json.load(file)
        assert manifest["output"]["bytes"] == os.path.getsize(shard.output)
        assert manifest["output"]["crc32c"] == shards.fingerprint(shard.output)["crc32c"]
        assert shards.status(shard, self.recipe(tmp_path), reads_output=True).manifest == manifest


class Run:
    """The command in a session of its own, as from a terminal; its processes."""

    def __init__(self, *flags):
        def prepare():
            os.setsid()
            # A shell starts background jobs with Ctrl-C ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        script = [sys.executable, ROOT / "create_pretraining_shards.py", *flags]
        self.process = subprocess.Popen(
            script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare
        )

    def stop_at_half_a_part(self, output):
        """Returns the processes that make parts, stopped, so that they go no further."""
        while True:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
            if glob.glob(f"{output}/.part-*.tmp"):
                makers = self.processes("ray::make")
                for maker in makers:
                    maker.suspend()
                if makers and glob.glob(f"{output}/.part-*.tmp"):
                    return makers
                for maker in makers:
                    maker.resume()

    def processes(self, title=""):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and " ".join(
                    process.cmdline()
                ).startswith(title):
                    found.append(process)
        return found

    def end(self):
        stdout, stderr = self.process.communicate(timeout=600)
        return self.process.returncode, stdout, stderr


def test_interrupted_and_killed(texts, tmp_path):
    """Ctrl-C, SIGKILL of the command, SIGKILL of a worker, one after the other; at last the bytes
    of the single command.
    """
    output, before = tmp_path / "out", ray_folders()
    flags = command(texts, output, *KILLED)

    run = Run(*flags)
    makers = run.stop_at_half_a_part(output)
    listening = [
        c.laddr.ip
        for process in run.processes()
        for c in process.net_connections("inet")
        if c.status == "LISTEN"
    ]
    assert len(listening) >= 4 and {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    os.killpg(run.process.pid, signal.SIGINT)
    for maker in makers:
        maker.resume()
    code, _, stderr = run.end()
    assert (code, stderr) == (130, "")
    assert (
        run.processes() == [] and glob.glob(f"{output}/.part-*") == [] and ray_folders() == before
    )

    run = Run(*flags)
    makers = run.stop_at_half_a_part(output)
    run.process.kill()
    for maker in makers:
        maker.resume()
    assert run.end()[0] == -signal.SIGKILL
    for folder in ray_folders() - before:  # logs of the killed Ray
        shutil.rmtree(folder, ignore_errors=True)
    done = {
        os.path.basename(path)[: -len(".json")] for path in glob.glob(f"{output}/.manifest/*.json")
    }
    assert done < set(COPIES)

    run = Run(*flags)
    maker, *others = run.stop_at_half_a_part(output)
    maker.kill()
    for other in others:
        other.resume()
    code, stdout, stderr = run.end()
    assert (code, stderr) == (0, "") and "0 failed" in stdout
    assert glob.glob(f"{output}/.part-*") == []
    (tmp_path / "single").mkdir()
    assert contents(output) == single_command(texts, tmp_path / "single", *KILLED)


class TestRefusals:
    def test_everything_wrong_is_reported_at_once(self, texts, tmp_path):
        process = make(
            tmp_path / "absent-*",
            tmp_path / "a/b/c",
            "--num_workers=0",
            "--dupe_factor=0",
            check=False,
        )
        assert_refused(process, "--input_dir", "absent-*", "--num_workers=0", "--dupe_factor=0")

    @pytest.mark.parametrize(
        "address, expected",
        [("127.0.0.1:1", "nothing answers there"), ("head", "expected host:port")],
    )
    def test_no_cluster(self, texts, tmp_path, address, expected):
        process = make(texts, tmp_path / "out", f"--ray_address={address}", check=False)
        assert_refused(process, f"--ray_address: {address}: {expected}")

    def test_folder_without_parts(self, tmp_path):
        assert_refused(make(tmp_path, tmp_path / "out", check=False), "no file part-*")

    def test_output_in_the_folder_of_the_texts(self, texts):
        assert_refused(make(texts, f"{texts}/../{texts.name}", check=False), "would be overwritten")

    def test_another_run_in_the_folder(self, texts, tmp_path):
        with shards.lock_of_run(str(tmp_path / "out")):
            assert_refused(make(texts, tmp_path / "out", check=False), "another run is working on")

    def test_same_name_twice(self, texts, tmp_path):
        (tmp_path / "part-00000-of-00004").write_bytes(b"x\n")
        process = make(f"{texts}/part-*,{tmp_path}/part-*", tmp_path / "out", check=False)
        assert_refused(process, "2 texts are named part-00000-of-00004")


def test_importing_does_nothing():
    code = (
        "import sys, create_pretraining_shards; "
        "print(sorted({'tensorflow', 'ray'} & sys.modules.keys()))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, "--unknown"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (process.stdout, process.stderr) == ("[]\n", "")
