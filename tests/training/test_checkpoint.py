"""A resumed run: to the same losses, from the newest checkpoint that is whole; what
checkpoints are good for besides.
"""

import concurrent.futures
import json
import os
import shutil
import signal
import threading

import pytest
import torch
from conftest import assert_refused
from training_runs import (
    copy_of_run_as_it_was,
    count_records,
    evaluations_of,
    flags,
    metrics,
    run_ranks,
    start,
    start_script,
    train_apart,
    train_here,
    wait_for,
    weights,
)

import bert.common.quiet_imports  # before transformers
import bert.training.run
from bert.common.files import DataError
from bert.training import checkpoint
from bert.training.background import BackgroundWriter
from bert.training.checkpoint import _write, load_shared
from bert.training.model import load_config, load_model
from bert.training.run import Run
from tests.script_server import PATIENCE
from train import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def long_run(training_data, dropout_config, tmp_path_factory):
    """A run with dropout over the ends of epochs, that keeps all checkpoints; and its flags."""
    folder = tmp_path_factory.mktemp("long")
    more = (
        f"--bert_config_file={dropout_config}", "--train_batch_size=128", "--num_train_steps=12",
        "--save_checkpoints_steps=2", "--keep_checkpoint_max=0", "--eval_every_samples=640",
    )  # fmt: skip
    train_apart(training_data, folder / "run", *more)
    return folder / "run", more


@pytest.mark.parametrize("step", [2, 8])
def test_resumes_to_the_same_losses(training_data, long_run, tmp_path, step):
    run, more = long_run
    other = copy_of_run_as_it_was(run, step, tmp_path / "run")
    (other / "checkpoints/.step-00000005.tmp").mkdir()  # killed while it wrote this one
    train_here(training_data, other, *more)
    assert metrics(other) == metrics(run)
    assert weights(other) == weights(run)
    assert sorted(os.listdir(other / "checkpoints")) == [
        f"step-{saved:08d}" for saved in range(step, 13, 2)
    ]
    examples = sum(count_records(path) for path in (training_data / "idx/train").iterdir())
    assert (
        12 * 128 > 2 * examples and examples > 2 * 128
    )  # epochs of several batches, more than two


def test_three_ranks_resume_to_the_same_losses(training_data, tmp_path):
    more = (
        "--train_batch_size=48",
        "--num_train_steps=6",
        "--save_checkpoints_steps=3",
        "--optimizer=adamw",
        "--keep_checkpoint_max=0",
    )
    train_apart(training_data, tmp_path / "straight", *more, processes=3)
    other = copy_of_run_as_it_was(tmp_path / "straight", 3, tmp_path / "stopped")
    train_apart(training_data, other, *more, processes=3)
    assert metrics(other) == metrics(tmp_path / "straight")
    assert weights(other) == weights(tmp_path / "straight")


def test_corrupt_checkpoint_is_skipped(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 4, tmp_path / "run")
    for step, change in (
        (6, lambda data: data[:-1]),
        (8, lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]),
    ):
        shutil.copytree(
            run / f"checkpoints/step-{step:08d}", other / f"checkpoints/step-{step:08d}"
        )
        path = other / f"checkpoints/step-{step:08d}/shared.pt"
        path.write_bytes(change(path.read_bytes()))
    (other / "checkpoints/step-00000010").mkdir()
    process = train_here(training_data, other, *more)
    for step, problem in (
        (6, "bytes, expected"),
        (8, "SHA-256 mismatch"),
        (10, "manifest.json"),
    ):
        assert any(
            f"step-{step:08d}" in line and problem in line for line in process.stderr.splitlines()
        )
    assert "resumes from" in process.stdout and "after step 4" in process.stdout
    assert metrics(other) == metrics(run)
    corrupt = {f"corrupt-step-{step:08d}" for step in (6, 8, 10)}
    assert set(os.listdir(other / "checkpoints")) == corrupt | {
        f"step-{step:08d}" for step in range(4, 13, 2)
    }


def test_run_whose_checkpoints_are_all_corrupt_is_not_restarted(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 4, tmp_path / "run")
    (other / "checkpoints/step-00000004/shared.pt").write_bytes(b"")
    before = metrics(other)
    process = train_here(training_data, other, *more, check=False)
    assert_refused(process, "none of the 1 checkpoints can be used", "another --output_dir")
    assert metrics(other) == before
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(run / "model", other / "model")
    process = train_here(training_data, other, *more, check=False)
    assert_refused(process, "its checkpoints are gone", f"--init_checkpoint={other}/model")


def test_corrupt_checkpoints_make_way_for_newer_ones(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 2, tmp_path / "run")
    for step in (20, 21, 22):
        (other / f"checkpoints/step-{step:08d}").mkdir()
    process = train_here(training_data, other, *more, "--keep_checkpoint_max=3")
    corrupt = [f"corrupt-step-{step:08d}" for step in (20, 21, 22)]
    assert sorted(os.listdir(other / "checkpoints")) == corrupt + [
        f"step-{step:08d}" for step in (8, 10, 12)
    ]
    assert all(
        process.stderr.count(f"was found corrupt and renamed {other}/checkpoints/{name}:") == 1
        for name in corrupt
    )


def test_checkpoint_that_cannot_be_read_is_not_taken_for_corrupt(training_data, long_run, tmp_path):
    """As when storage is away for a while: to resume from an older one would lose it."""
    run, more = long_run
    other = copy_of_run_as_it_was(run, 4, tmp_path / "run")
    newer = other / "checkpoints/step-00000006"
    newer.mkdir()
    shutil.copy(run / "checkpoints/step-00000006/manifest.json", newer)
    for name in ("shared.pt", "rank-00000.pt"):
        (newer / name).symlink_to(name)  # to itself
    before = metrics(other)
    process = train_here(training_data, other, *more, check=False)
    assert_refused(
        process, newer, "cannot be read, which does not mean that it is corrupt", "symbolic links"
    )
    assert metrics(other) == before
    assert sorted(os.listdir(other / "checkpoints")) == ["step-00000004", "step-00000006"]


def test_old_checkpoint_that_cannot_be_removed_is_reported_only(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 8, tmp_path / "run")
    (other / "checkpoints/.step-00000008.tmp").touch()  # in its way
    process = train_here(training_data, other, *more, "--keep_checkpoint_max=1")
    assert (
        process.stderr.count("warning") == 2
        and "an old checkpoint could not be removed" in process.stderr
    )
    assert metrics(other) == metrics(run)


def test_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    torch.save({"model": {}, "step": 3}, tmp_path / "shared.pt")
    with pytest.raises(DataError, match=f"{tmp_path}: written by an earlier version of train.py"):
        load_shared(tmp_path)


def test_finished_run_is_left_as_it_is(training_data, long_run):
    run, more = long_run
    before = metrics(run)
    train_here(training_data, run, *more)
    assert metrics(run) == before


def test_other_number_of_ranks_resumes(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 8, tmp_path / "run")
    process = run_ranks(2, "train.py", *flags(training_data, other, *more))
    assert process.returncode == 0, process.stderr
    assert "num_shards 2 instead of 1" in process.stderr
    assert metrics(other).splitlines()[:8] == metrics(run).splitlines()[:8]
    assert len(metrics(other).splitlines()) == len(metrics(run).splitlines())


def test_other_evaluation_examples_are_reported(training_data, long_run, tmp_path):
    """Their accuracies are of another measure: what was best before is no more."""
    run, more = long_run
    other = copy_of_run_as_it_was(run, 10, tmp_path / "run")
    saved = other / "checkpoints/step-00000010"
    shared, manifest = load_shared(saved), json.loads((saved / "manifest.json").read_text())
    manifest["files"]["shared.pt"] = _write(saved / "new", shared | {"best_accuracy": 0.9})
    (saved / "new").rename(saved / "shared.pt")  # which is mapped into memory
    (saved / "manifest.json").write_text(json.dumps(manifest))
    others = (
        f"--tfrecord_eval={training_data}/train/part-00001",
        f"--idx_eval={training_data}/idx/train/part-00001.idx",
    )
    process = train_here(training_data, other, *more, *others)
    assert "warning: the evaluation examples have changed" in process.stdout
    assert (
        load_shared(other / "checkpoints/step-00000012")["best_accuracy"]
        == evaluations_of(other)[-1]["masked_lm_accuracy"]
    )


def test_another_run_in_the_same_folder_is_refused(training_data, long_run):
    run, more = long_run
    process = train_here(
        training_data, run, *more, "--learning_rate=3e-3", "--optimizer=adamw", check=False
    )
    assert_refused(
        process, "--learning_rate=0.003", "started with 0.01", "--optimizer=adamw", "--output_dir"
    )


def test_killed_run_resumes_to_the_same_losses(training_data, long_run, tmp_path):
    run, more = long_run
    process = start(training_data, tmp_path / "run", *more)
    wait_for((tmp_path / "run/checkpoints/step-00000004").exists, process)
    process.kill()
    process.communicate()
    train_apart(training_data, tmp_path / "run", *more)  # in a new process
    assert metrics(tmp_path / "run") == metrics(run)
    assert weights(tmp_path / "run") == weights(run)


KILLED_WHILE_IT_WRITES = """
import os, signal
from bert.common import cli, quiet_imports
import train
from bert.training import checkpoint

write = checkpoint._write

def write_half_and_die(path, content):
    if "step-00000006" in path and "shared" in path:
        write(path, content)
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)

checkpoint._write = write_half_and_die
cli.run_as_rank(train.main)
"""


def test_run_killed_while_it_writes(training_data, long_run, tmp_path):
    """It resumes from the checkpoint before."""
    run, more = long_run
    script, other = tmp_path / "killed.py", tmp_path / "run"
    script.write_text(KILLED_WHILE_IT_WRITES)
    process = start_script(script, *flags(training_data, other, *more)).finished()
    assert process.returncode == -signal.SIGKILL
    names = [".step-00000006.tmp", "step-00000002", "step-00000004"]
    assert sorted(os.listdir(other / "checkpoints")) == names
    process = train_here(training_data, other, *more)
    assert "step-00000004, after step 4" in process.stdout
    assert metrics(other) == metrics(run)
    assert weights(other) == weights(run)


def test_training_continues_during_a_save(training_data, long_run, tmp_path, monkeypatch):
    """Each checkpoint is written only when the next one waits for it; it holds what it should."""
    run, more = long_run
    events, is_waited_for = [], threading.Event()
    begin_update, wait, save = Run.begin_update, BackgroundWriter.wait, checkpoint.save

    def note_and_begin(self, rate):
        events.append(f"step {self.step + 1}")
        begin_update(self, rate)

    def note_and_wait(self):
        is_waited_for.set()
        wait(self)
        is_waited_for.clear()

    def save_late(folder, step, *others):
        assert is_waited_for.wait(PATIENCE)
        save(folder, step, *others)
        events.append(f"wrote {step}")

    monkeypatch.setattr(Run, "begin_update", note_and_begin)
    monkeypatch.setattr(BackgroundWriter, "wait", note_and_wait)
    monkeypatch.setattr(checkpoint, "save", save_late)
    train_here(training_data, tmp_path / "run", *more)
    for step in range(2, 12, 2):
        assert events.index(f"step {step + 1}") < events.index(f"wrote {step}")
    for step in range(2, 13, 2):
        name = f"checkpoints/step-{step:08d}"
        found, expected = (load_shared(folder / name) for folder in (tmp_path / "run", run))
        assert found["log_bytes"]["metrics"] == expected["log_bytes"]["metrics"]
        for kind in ("weights", "m", "v"):
            pairs = zip(found["model"][kind].values(), expected["model"][kind].values())
            assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "owner, name, message",
    [
        (checkpoint, "_write", "step-00000002: the checkpoint could not be written: no space"),
        (bert.training.run, "save_model", "no space"),  # into best/
    ],
)
def test_error_of_writing_ends_the_run_at_the_next_step(
    training_data, tmp_path, monkeypatch, owner, name, message
):
    begin_update = Run.begin_update

    def fail(*arguments):
        raise OSError("no space")

    def begin_when_written(self, rate):
        if self.step == 2:
            concurrent.futures.wait([self.writer._current])
        begin_update(self, rate)

    monkeypatch.setattr(owner, name, fail)
    monkeypatch.setattr(Run, "begin_update", begin_when_written)
    saves = "--save_checkpoints_steps=2" if name == "_write" else "--eval_every_samples=32"
    process = train_here(training_data, tmp_path / "run", saves, check=False)
    assert_refused(process, message)
    assert process.returncode == 1 and process.stderr.count("no space") == 1
    assert len(metrics(tmp_path / "run").splitlines()) == (2 if name == "_write" else 3)


def test_error_of_writing_is_not_lost_behind_another(capsys):
    def fail():
        raise DataError("no space")

    with pytest.raises(DataError, match="no space"), BackgroundWriter() as writer:
        writer.start(fail)
    with pytest.raises(DataError, match="diverged"), BackgroundWriter() as writer:
        writer.start(fail)
        raise DataError("diverged")
    assert capsys.readouterr().err == "warning: no space\n"


def test_disk_full_keeps_earlier_checkpoints(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 2, tmp_path / "run")
    arguments = flags(training_data, other, *more)
    process = start_script("train.py", *arguments, file_size_limit=100_000).finished()
    assert_refused(
        process,
        "step-00000004: the checkpoint could not be written",
        "File too large",
        "earlier checkpoints are unchanged",
    )
    assert os.listdir(other / "checkpoints") == ["step-00000002"]
    train_here(training_data, other, *more)
    assert metrics(other) == metrics(run)


def test_export_writes_the_newest_checkpoints_model(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 12, tmp_path / "run")
    before = metrics(other)
    process = train_here(training_data, other, *more, "--export=True")
    assert process.stdout == f"{other}/export: the model of {other}/checkpoints/step-00000012\n"
    assert (other / "export/model.safetensors").read_bytes() == weights(run) and metrics(
        other
    ) == before
    config = json.loads((training_data / "config.json").read_text()) | {"num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="another model.*missing in the configuration"):
        main(
            flags(
                training_data,
                other,
                *more,
                "--export",
                f"--bert_config_file={tmp_path}/config.json",
            )
        )
    with pytest.raises(DataError, match=f"{tmp_path}/none holds no checkpoint"):
        main(flags(training_data, tmp_path / "none", *more, "--export"))


def test_begins_with_the_weights_of_a_checkpoint(training_data, long_run, tmp_path):
    run, _ = long_run
    saved = run / "checkpoints/step-00000012"
    train_here(training_data, tmp_path / "run", f"--init_checkpoint={saved}", "--num_train_steps=0")
    (evaluation,) = evaluations_of(tmp_path / "run")
    expected = [row for row in evaluations_of(run) if row["step"] == 12]
    assert evaluation == pytest.approx({**expected[0], "step": 0}, rel=1e-6)
    corrupt = shutil.copytree(saved, tmp_path / "corrupt")
    with open(corrupt / "shared.pt", "r+b") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=f"{corrupt}: .* corrupt"):
        load_model(corrupt, load_config(training_data / "config.json"))
    config = json.loads((training_data / "config.json").read_text()) | {"intermediate_size": 48}
    (tmp_path / "config.json").write_text(json.dumps(config))
    wrong_shape = (
        "another model: .*intermediate.dense.bias is .64. there and .48. in the configuration"
    )
    with pytest.raises(DataError, match=f"{saved}: {wrong_shape}"):
        load_model(saved, load_config(tmp_path / "config.json"))
