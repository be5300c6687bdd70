"""create_pretraining_shards.py: the bytes of the single command, whatever is killed; manifests that
notice what changed.
"""

import contextlib
import glob
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile

import psutil
import pytest
from conftest import ROOT, UNICODE_TEXT, assert_refused, create, run_script, start_script

import create_pretraining_shards
from bert.common.files import DataError
from bert.common.path_flags import list_folder_or_pattern
from bert.generation import estimate, shards
from tests.script_server import wait_for

COPIES = {
    "part-00000-of-00004": 1,
    "part-00001-of-00004": 3,
    "part-00002-of-00004": 2,
    "part-00003-of-00004": 4,
}
FLAGS = ("--dupe_factor=300", "--max_seq_length=64")  # half a second at least for each part


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
        *FLAGS,
        *flags,
    ]


def make(texts, output, *flags, check=True):
    """Without Ray; see `Run`."""
    script = "tests/shards_without_ray.py"
    return run_script(script, *command(texts, output, *flags), check=check)


def contents(folder):
    """{name: digest} of the files that are not hidden."""
    return {
        name: hashlib.md5((folder / name).read_bytes()).hexdigest()
        for name in os.listdir(folder)
        if not name.startswith(".")
    }


@pytest.fixture(scope="module")
def single_command(texts, tmp_path_factory):
    """The `contents` of the same parts by create_pretraining_data.py."""
    folder = tmp_path_factory.mktemp("single")
    for name in COPIES:
        create(texts / name, folder / name, *FLAGS)
    return contents(folder)


def ray_folders():
    """Those that processes which have ended left; others may be at work beside this test."""
    folders = glob.glob("/tmp/bert-ray-*-*")
    return {path for path in folders if not psutil.pid_exists(int(path.split("-")[2]))}


class Run:
    """The command itself, in a session of its own, as from a terminal; its processes."""

    def __init__(self, texts, output, *flags):
        self._output, self._before = output, set(glob.glob(f"{output}/.part-*.tmp"))
        self.process = start_script(
            "create_pretraining_shards.py", *command(texts, output, *flags), own_session=True
        )

    def stop_at_half_a_part(self):
        """Returns the processes that make parts, stopped, so that they go no further."""
        while True:
            wait_for(self.has_half_a_part, self.process)
            makers = self.processes("ray::make")
            for maker in makers:
                maker.suspend()
            if makers and self.has_half_a_part():
                return makers
            for maker in makers:
                maker.resume()

    def has_half_a_part(self):
        return bool(set(glob.glob(f"{self._output}/.part-*.tmp")) - self._before)

    def processes(self, title=""):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and " ".join(
                    process.cmdline()
                ).startswith(title):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def first_run(texts, tmp_path_factory):
    """One part is corrupt, a killed run left temporary files, and a worker is killed; returns
    (process, folder of the records).
    """
    output = tmp_path_factory.mktemp("first") / "tfrecord"
    (output / ".manifest").mkdir(parents=True)
    (output / ".part-00000-of-00004.0123abcd.tmp").write_bytes(b"half")
    (output / ".manifest/.part-00000-of-00004.json.0123abcd.tmp").write_bytes(b"half")
    (output / ".part-00000-of-00004.notes.tmp").write_bytes(b"somebody's")
    whole = (texts / "part-00002-of-00004").read_bytes()
    (texts / "part-00002-of-00004").write_bytes(b"fine\nbad \xff\n")
    before = ray_folders()
    run = Run(texts, output)
    maker, *others = run.stop_at_half_a_part()
    maker.kill()
    for other in others:
        other.resume()
    process = run.process.finished()
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


def test_second_run_makes_what_is_missing_and_asks_before_it_replaces(
    texts, single_command, first_run, tmp_path
):
    _, output = first_run
    with open(output / "part-00003-of-00004", "ab") as file:
        file.write(b"x")
    changed = tmp_path / "part-00001-of-00004"
    text = (texts / changed.name).read_bytes()
    (texts / changed.name).write_bytes(text.replace(b"fox", b"dog"))
    create(texts / changed.name, changed, *FLAGS)
    expected = single_command | contents(tmp_path)
    assert expected != single_command
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
    assert contents(output) == expected

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
    (texts / changed.name).write_bytes(text)


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


class TestDryRun:
    SHORT = "--dupe_factor=3"

    @pytest.mark.parametrize("output_format", ["tfrecord", "instances"])
    def test_estimate_is_what_is_made_then(self, texts, tmp_path, output_format):
        temporary, output = tmp_path / "temporary", tmp_path / "out"
        temporary.mkdir()
        flags = (self.SHORT, f"--output_format={output_format}")
        run = [*command(texts, output, *flags), "--dry_run"]
        environment = os.environ | {"TMPDIR": str(temporary)}
        process = run_script("create_pretraining_shards.py", *run, environment=environment)
        assert os.listdir(tmp_path) == ["temporary"] and os.listdir(temporary) == []
        rows = self.rows(process)
        assert rows["sample"].startswith("part-00002-of-00004: ")  # in the middle
        assert rows["parts"] == "4 to make, 0 made already"

        made = self.rows(make(texts, output, *flags))["bytes"]
        size, unit, *words = rows["bytes"].split()
        assert (unit, *words) == ("MB,", "as", output_format)
        assert float(size) * 1e6 == pytest.approx(int(made.replace(",", "")), rel=0.1)

        (output / "part-00001-of-00004").unlink()
        process = make(texts, output, *flags, "--dry_run")
        assert self.rows(process)["parts"] == "1 to make, 3 made already"
        make(texts, output, *flags)
        process = make(texts, output, *flags, "--dry_run")
        assert process.stdout == "nothing to make: all 4 parts are made already\n"

    @staticmethod
    def rows(process):
        lines = [line.split(maxsplit=1) for line in process.stdout.splitlines()]
        return {words[0]: words[-1] for words in lines}

    @pytest.mark.parametrize("free, has_room", [(10_000_000_000, True), (100_000, False)])
    def test_room_on_the_disk(self, texts, tmp_path, monkeypatch, free, has_room):
        usage = lambda _: type("Usage", (), {"free": free})  # noqa: E731
        monkeypatch.setattr("create_pretraining_shards.shutil.disk_usage", usage)
        flags = command(texts, tmp_path / "out", self.SHORT, "--dry_run")
        expected = pytest.raises(DataError, match=r"are needed, 0\.1 MB are free: .*=instances")
        with contextlib.nullcontext() if has_room else expected:
            create_pretraining_shards.main(flags)

    def test_arithmetic(self):
        sample = estimate.Sample("part", 100, 7, 2000, 3.0, 200_000_000)
        whole = estimate.estimate(sample, [100, 50, 50], 2)
        assert whole == (4000, 2, 265_000_000, 3.0)
        assert estimate.estimate(sample, [100] * 5, 2).seconds == 7.5
        assert estimate.estimate(sample, [50, 200], 1).worker_bytes == 465_000_000
        whole = estimate.estimate(sample, [100, 50, 50], 8)
        assert (whole.num_workers, whole.seconds) == (3, 3.0)  # as long as its longest part

    def test_text_that_is_no_text(self, tmp_path):
        (tmp_path / "part-0").write_bytes(b"fine\nbad \xff\n")
        process = make(tmp_path, tmp_path / "out", "--dry_run", check=False)
        assert_refused(process, "part-0: line 2, byte 9: found 0xff")
        assert process.returncode == 1

    def test_not_together_with_check(self, texts, tmp_path):
        process = make(texts, tmp_path / "out", "--dry_run", "--check", check=False)
        assert_refused(process, "--check reads the outputs, --dry_run estimates them")

    def test_no_room_for_the_sample(self, texts, tmp_path):
        run = [*command(texts, tmp_path / "out", self.SHORT), "--dry_run"]
        process = run_script(
            "create_pretraining_shards.py", *run, check=False, file_size_limit=200_000
        )
        assert_refused(process, "part-00002-of-00004", "TMPDIR=<folder>")


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


@pytest.mark.slow
def test_interrupted_and_killed(texts, single_command, tmp_path):
    """Ctrl-C, then SIGKILL of the command; at last the bytes of the single command."""
    output, before = tmp_path / "out", ray_folders()

    run = Run(texts, output)
    makers = run.stop_at_half_a_part()
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
    process = run.process.finished()
    assert (process.returncode, process.stderr) == (130, "")
    assert (
        run.processes() == [] and glob.glob(f"{output}/.part-*") == [] and ray_folders() == before
    )

    run = Run(texts, output, "--num_workers=1")
    (maker,) = run.stop_at_half_a_part()
    run.process.kill()
    maker.resume()
    assert run.process.finished().returncode == -signal.SIGKILL
    for folder in ray_folders() - before:  # logs of the killed Ray
        shutil.rmtree(folder, ignore_errors=True)
    done = {
        os.path.basename(path)[: -len(".json")] for path in glob.glob(f"{output}/.manifest/*.json")
    }
    assert done < set(COPIES)

    process = make(texts, output)
    assert process.stderr == "" and "0 failed" in process.stdout
    assert glob.glob(f"{output}/.part-*") == []
    assert contents(output) == single_command


class Node:
    """A machine of a Ray cluster; `address`: of the head."""

    def __init__(self, ip, role, environment):
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "tests/ray_node.py", ip, role],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.address = self._process.stdout.readline().strip()

    def _processes(self):
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def makers_at_work(self):
        """Those of its processes that write a part just now."""
        found = []
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                if any("/.part-" in file.path for file in process.open_files()):
                    found.append(process)
        return found

    def kill(self):
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.communicate()


@pytest.fixture
def cluster():
    """Two machines, and the environment that a command needs to reach them."""
    folder = tempfile.mkdtemp(prefix="bert-cluster-", dir="/tmp")  # paths of sockets are short
    environment = os.environ | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes the machine's own address
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # That a machine is gone is noticed soon.
        "RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "500",
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        head = Node("127.0.0.1", f"folder={folder}", environment)
        stack.callback(head.kill)
        other = Node("127.0.0.2", f"gcs_address={head.address}", environment)
        stack.callback(other.kill)
        yield head, other, environment


@pytest.mark.slow
def test_cluster_that_loses_a_machine(texts, single_command, cluster, tmp_path):
    """All that runs on it is killed while it makes a part; the bytes are those of one machine."""
    head, lost, environment = cluster
    process = start_script(
        "create_pretraining_shards.py",
        *command(texts, tmp_path / "out", f"--ray_address={head.address}"),
        environment=environment,
    )  # fmt: skip
    wait_for(head.makers_at_work, process)
    others = head.makers_at_work()
    for other in others:  # so that something is left for the other machine, which may join later
        other.suspend()
    wait_for(lost.makers_at_work, process)
    lost.kill()
    for other in others:
        other.resume()
    process = process.finished()
    assert (process.returncode, process.stderr) == (0, ""), process
    assert "0 failed" in process.stdout
    assert contents(tmp_path / "out") == single_command


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
