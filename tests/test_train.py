"""train.py as users run it, with torchrun on the CPU: losses do not depend on ranks or accumulation; what a run leaves."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, assert_refused, run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_mlperf_log import complaints
from training_runs import STEPS, copy_of_run_as_it_was, evaluations_of, flags, losses, metrics, torchrun, train, weights
from transformers import AutoTokenizer

import bert.quiet_imports  # noqa: F401  before transformers
from bert.checkpoint import load_shared
from tokenization import FullTokenizer
from train import parse_flags


@pytest.fixture(scope="module")
def plain_run(training_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("plain") / "run"
    return output, *train(training_data, output, "--eval_at_start=True", "--shuffle=False")


def count_records(index):
    return len(index.read_text().splitlines())


def test_what_a_run_leaves(training_data, plain_run):
    output, steps, evaluations = plain_run
    names = [".lock", "best", "checkpoints", "curves.png", "flags.json", "metrics.jsonl", "mlperf.log", "model", "tensorboard"]
    assert sorted(os.listdir(output)) == names
    assert os.listdir(output / "checkpoints") == [f"step-{STEPS:08d}"]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["learning_rate"] for row in steps] == pytest.approx([0.0, 0.5e-2, 0.5e-2, 0.25e-2])
    assert [row["step"] for row in evaluations] == [0, STEPS]
    assert {row["examples"] for row in evaluations} == {count_records(training_data / "idx/eval/all.idx")}
    assert evaluations[1]["masked_lm_loss"] < evaluations[0]["masked_lm_loss"]
    for row in steps:
        assert row["loss"] == pytest.approx(row["mlm_loss"] + row["nsp_loss"])
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    words = "Anarchism is a \u00c9tat, philosophy: unaffable"
    assert tokenizer.tokenize(words) == FullTokenizer(ROOT / "vocab.txt").tokenize(words)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_accumulation_changes_nothing(training_data, plain_run, tmp_path):
    steps, _ = train(training_data, tmp_path / "run", "--steps_per_update=4", "--shuffle=False")
    assert losses(steps) == [pytest.approx(row, rel=1e-5) for row in losses(plain_run[1])]


def test_evaluation_does_not_depend_on_ranks(training_data, plain_run, tmp_path):
    _, evaluations = train(
        training_data, tmp_path / "run", "--eval_at_start=True", "--shuffle=False", "--steps_per_update=2", processes=2
    )
    assert evaluations[0] == pytest.approx(plain_run[2][0], rel=1e-6)


def test_two_ranks_make_the_updates_of_one(training_data, tmp_path):
    """The loader's global batches do not depend on the number of ranks, shuffled or not; nor does the loss."""
    two, _ = train(training_data, tmp_path / "two", processes=2)
    one, _ = train(training_data, tmp_path / "one")
    assert losses(two) == [pytest.approx(row, rel=1e-5) for row in losses(one)]


def test_saved_model_evaluates_the_same(training_data, plain_run, tmp_path):
    output, _, evaluations = plain_run
    steps, again = train(training_data, tmp_path / "run", f"--init_checkpoint={output}/model", "--num_train_steps=0")
    assert steps == []
    assert {**again[0], "step": STEPS} == pytest.approx(evaluations[-1], rel=1e-6)


def test_same_seed_same_losses(training_data, tmp_path):
    first, second, other = (train(training_data, tmp_path / str(n), f"--seed={seed}")[0] for n, seed in enumerate((1, 1, 2)))
    assert losses(first) == losses(second) != losses(other)


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_loss_falls(training_data, tmp_path, optimizer):
    steps, _ = train(training_data, tmp_path / "run", "--num_train_steps=12", f"--optimizer={optimizer}")
    assert steps[-1]["mlm_loss"] < steps[0]["mlm_loss"] - 0.05


def test_divergence_stops_the_run(training_data, tmp_path):
    more = (
        "--learning_rate=1e30",
        "--optimizer=adamw",
        "--num_train_steps=20",
        "--save_checkpoints_steps=1",
        "--keep_checkpoint_max=0",
    )
    process = run_script("train.py", *flags(training_data, tmp_path / "run", *more), check=False)
    assert_refused(process, "training has diverged", "--learning_rate", "epoch 0")
    assert process.stdout.count("left out") == 4
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped", False) for row in rows][-6:] == [False] + [True] * 5
    assert rows[-1]["loss"] is None
    # The steps that were left out changed nothing that was saved.
    last_good = len(rows) - 5
    newest, good = (load_shared(tmp_path / f"run/checkpoints/step-{step:08d}") for step in (last_good + 2, last_good))
    for kind in ("weights", "m", "v"):
        assert all(map(torch.equal, newest["model"][kind].values(), good["model"][kind].values()))
    assert not (tmp_path / "run/model").exists()


def test_everything_wrong_is_told_at_once(training_data, plain_run, tmp_path):
    config = json.loads((training_data / "config.json").read_text()) | {
        "vocab_size": 1000,
        "hidden_size": 33,
        "num_attention_heads": 3,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    wrong = {
        "--start_warmup_step=3": "0 or less", "--eval_every_samples=0": "1 or more", "--learning_rate=-1": "0 or more",
        "--max_seq_length=128": "examples of 32 tokens, but --max_seq_length=128",
        "--max_predictions_per_seq=20": "examples of 5 predictions, but", "--plugin=zero1": "CUDA GPUs only",
        "--tp_size=2": "num_attention_heads 3 is not divisible by --tp_size=2", "--compile": "--compile does not go together with --unpad",
        "--unpad": "--unpad", "--expected_curve=absent.csv": "absent.csv: no such file",
        f"--bert_config_file={tmp_path}/config.json": "vocab.txt has 30522 tokens, the configuration has vocab_size 1000",
        "--seed=3": "was begun with 12345",
    }  # fmt: skip
    process = run_script("train.py", *flags(training_data, plain_run[0], *wrong), check=False)
    assert_refused(process, *wrong.values(), "hidden_size 33", "was begun with 32", "--tp_size=2 is tensor parallelism")
    assert "--tp_size=2 does not divide the 1 processes" in process.stderr
    other = ("--bert_config_file=absent", "--train_batch_size=10", "--steps_per_update=4")
    process = run_script("train.py", *flags(training_data, plain_run[0], *other), check=False)
    assert_refused(process, "--bert_config_file", "absent", "not divisible by 1 processes x --steps_per_update=4")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_damaged_record_of_flags_is_refused(training_data, tmp_path, content):
    (tmp_path / "flags.json").write_text(content)
    process = run_script("train.py", *flags(training_data, tmp_path), check=False)
    assert_refused(process, f"{tmp_path}/flags.json: not the flags of a run", "choose another --output_dir")


def test_errors_under_torchrun_are_told_once_and_first(training_data, tmp_path):
    process = torchrun(2, "train.py", *flags(training_data, tmp_path / "run", "--learning_rate=-1"))
    assert process.returncode != 0
    assert process.stderr.startswith("error: --learning_rate=-1.0: expected 0 or more\n")
    assert process.stderr.count("--learning_rate=-1.0: expected") == 1


def test_error_of_one_rank_is_told_once(training_data, tmp_path):
    """A record in the middle of the data, which one of two ranks reads, is damaged after the checks at the start."""
    shutil.copytree(training_data / "train", tmp_path / "train")
    offset, _ = (training_data / "idx/train/part-00000.idx").read_text().splitlines()[20].split()
    with open(tmp_path / "train/part-00000", "r+b") as file:
        file.seek(int(offset) + 100)
        file.write(b"damage")
    process = torchrun(
        2, "train.py", *flags(training_data, tmp_path / "run", f"--tfrecord_train={tmp_path}/train", "--shuffle=False")
    )
    assert process.returncode != 0
    assert "[rank" not in process.stderr  # how torch heads stack traces
    (error,) = [line for line in process.stderr.splitlines() if line.startswith("error")]
    assert "part-00000" in error and "checksum" in error


def test_ids_beyond_the_model_are_refused(training_data, tmp_path):
    config = json.loads((training_data / "config.json").read_text()) | {"vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_text("".join((ROOT / "vocab.txt").read_text().splitlines(keepends=True)[:1000]))
    more = [f"--bert_config_file={tmp_path}/config.json", f"--vocab_file={tmp_path}/vocab.txt"]
    process = run_script("train.py", *flags(training_data, tmp_path / "run", *more), check=False)
    assert_refused(process, "token id", "vocab_size 1000")
    process = run_script("train.py", *flags(training_data, tmp_path / "run", more[0]), check=False)
    assert_refused(process, "vocab.txt has 30522 tokens, the configuration has vocab_size 1000")
    assert os.listdir(tmp_path / "run") == [".lock"]


def test_sequences_longer_than_the_model_are_refused(training_data, tmp_path):
    config = json.loads((training_data / "config.json").read_text()) | {"max_position_embeddings": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    process = run_script(
        "train.py", *flags(training_data, tmp_path / "run", f"--bert_config_file={tmp_path}/config.json"), check=False
    )
    assert_refused(process, "32", "max_position_embeddings", "16")


# ---------------------------------------------------------------------------------------------------------------
# A run that goes on


@pytest.fixture(scope="module")
def long_run(training_data, dropout_config, tmp_path_factory):
    """A run with dropout over the ends of epochs, that keeps all checkpoints; and its flags."""
    folder = tmp_path_factory.mktemp("long")
    more = (
        f"--bert_config_file={dropout_config}", "--train_batch_size=256", "--num_train_steps=12", "--save_checkpoints_steps=2",
        "--keep_checkpoint_max=0", "--eval_every_samples=1280",
    )  # fmt: skip
    train(training_data, folder / "run", *more)
    return folder / "run", more


@pytest.mark.parametrize("step", [2, 8])
def test_goes_on_to_the_same_losses(training_data, long_run, tmp_path, step):
    run, more = long_run
    other = copy_of_run_as_it_was(run, step, tmp_path / "run")
    (other / "checkpoints/.step-00000005.tmp").mkdir()  # killed while it wrote this one
    train(training_data, other, *more)
    assert metrics(other) == metrics(run)
    assert weights(other) == weights(run)
    assert sorted(os.listdir(other / "checkpoints")) == [f"step-{saved:08d}" for saved in range(step, 13, 2)]
    examples = sum(count_records(path) for path in (training_data / "idx/train").iterdir())
    assert 12 * 256 > 2 * examples  # more than two epochs


def test_three_ranks_go_on_to_the_same_losses(training_data, tmp_path):
    more = (
        "--train_batch_size=48",
        "--num_train_steps=6",
        "--save_checkpoints_steps=3",
        "--optimizer=adamw",
        "--keep_checkpoint_max=0",
    )
    train(training_data, tmp_path / "straight", *more, processes=3)
    other = copy_of_run_as_it_was(tmp_path / "straight", 3, tmp_path / "stopped")
    train(training_data, other, *more, processes=3)
    assert metrics(other) == metrics(tmp_path / "straight")
    assert weights(other) == weights(tmp_path / "straight")


def test_damaged_checkpoint_is_passed_over(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 4, tmp_path / "run")
    for step, damage in ((6, lambda data: data[:-1]), (8, lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])):
        shutil.copytree(run / f"checkpoints/step-{step:08d}", other / f"checkpoints/step-{step:08d}")
        path = other / f"checkpoints/step-{step:08d}/shared.pt"
        path.write_bytes(damage(path.read_bytes()))
    (other / "checkpoints/step-00000010").mkdir()
    process = run_script("train.py", *flags(training_data, other, *more))
    for step, problem in ((6, "bytes, expected"), (8, "does not have its SHA-256"), (10, "manifest.json")):
        assert any(f"step-{step:08d}" in line and problem in line for line in process.stderr.splitlines())
    assert "goes on from" in process.stdout and "after step 4" in process.stdout
    assert metrics(other) == metrics(run)


def test_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 4, tmp_path / "run")
    (other / "checkpoints/step-00000004/shared.pt").write_bytes(b"")
    before = metrics(other)
    process = run_script("train.py", *flags(training_data, other, *more), check=False)
    assert_refused(process, "none of the 1 checkpoints can be used", "another --output_dir")
    assert metrics(other) == before
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(run / "model", other / "model")
    process = run_script("train.py", *flags(training_data, other, *more), check=False)
    assert_refused(process, "its checkpoints are gone", f"--init_checkpoint={other}/model")


def test_damaged_checkpoints_are_not_kept_for_newer_ones(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 2, tmp_path / "run")
    for step in (20, 21, 22):
        (other / f"checkpoints/step-{step:08d}").mkdir()
    run_script("train.py", *flags(training_data, other, *more, "--keep_checkpoint_max=3"))
    assert sorted(os.listdir(other / "checkpoints")) == [f"step-{step:08d}" for step in (8, 10, 12)]


def test_two_runs_in_one_folder_are_refused(training_data, tmp_path):
    first = start(training_data, tmp_path / "run", "--num_train_steps=100000")
    wait_for((tmp_path / "run/metrics.jsonl").exists)
    process = run_script("train.py", *flags(training_data, tmp_path / "run", "--num_train_steps=100000"), check=False)
    assert_refused(process, f"{tmp_path}/run: another run is at work there")
    first.kill()
    first.communicate()


def test_finished_run_is_left_as_it_is(training_data, long_run):
    run, more = long_run
    before = metrics(run)
    train(training_data, run, *more)
    assert metrics(run) == before


def test_other_number_of_ranks_goes_on(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 8, tmp_path / "run")
    process = torchrun(2, "train.py", *flags(training_data, other, *more))
    assert process.returncode == 0, process.stderr
    assert "num_shards 2 instead of 1" in process.stderr
    assert metrics(other).splitlines()[:8] == metrics(run).splitlines()[:8]
    assert len(metrics(other).splitlines()) == len(metrics(run).splitlines())


def test_another_run_in_the_same_folder_is_refused(training_data, long_run):
    run, more = long_run
    process = run_script(
        "train.py", *flags(training_data, run, *more, "--learning_rate=3e-3", "--optimizer=adamw"), check=False
    )
    assert_refused(process, "--learning_rate=0.003", "begun with 0.01", "--optimizer=adamw", "--output_dir")


def start(data, output, *more, **environment):
    return subprocess.Popen(
        [sys.executable, "train.py", *flags(data, output, *more)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_run_goes_on_to_the_same_losses(training_data, long_run, tmp_path):
    run, more = long_run
    process = start(training_data, tmp_path / "run", *more)
    wait_for(lambda: (tmp_path / "run/checkpoints/step-00000004").exists())
    process.kill()
    process.communicate()
    train(training_data, tmp_path / "run", *more)
    assert metrics(tmp_path / "run") == metrics(run)
    assert weights(tmp_path / "run") == weights(run)


def test_signals_save_and_stop(training_data, tmp_path):
    """As a cluster sends them before it takes the machine away; the same command goes on each time."""
    steps = [0]
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        process = start(training_data, tmp_path / "run", "--num_train_steps=100000", "--keep_checkpoint_max=1")
        lines = iter(process.stdout.readline, "")
        assert any("training examples" in line for line in lines)
        process.send_signal(signum)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert f"stopped by {signum.name} after step" in output and "the same command goes on" in output
        (checkpoint,) = os.listdir(tmp_path / "run/checkpoints")
        steps.append(int(checkpoint.removeprefix("step-")))
        assert [json.loads(line)["step"] for line in metrics(tmp_path / "run").splitlines()] == list(range(1, steps[-1] + 1))
    assert steps == sorted(set(steps))


@pytest.fixture
def two_ranks(training_data, tmp_path):
    """Two processes in the middle of one run, started as a cluster does it, without torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
        }
    more = ("--num_train_steps=100000", "--save_checkpoints_steps=2", "--collective_timeout=5")
    ranks = [
        start(training_data, tmp_path / "run", *more, RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", **shared)
        for rank in range(2)
    ]
    wait_for((tmp_path / "run/checkpoints/step-00000002").exists)
    yield ranks
    for process in ranks:
        process.kill()


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_that_waits_too_long_says_so(two_ranks, rank):
    waiting, hanging = two_ranks[rank], two_ranks[1 - rank]
    hanging.send_signal(signal.SIGSTOP)
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert "waited longer than --collective_timeout for another rank" in errors and "Traceback" not in errors


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_that_loses_the_other_says_so_in_a_line(two_ranks, rank):
    left, lost = two_ranks[rank], two_ranks[1 - rank]
    lost.kill()
    _, errors = left.communicate(timeout=60)
    assert left.returncode == 1
    assert "lost the connection to another rank" in errors and len(errors.splitlines()) == 1


def test_disk_full_keeps_earlier_checkpoints(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 2, tmp_path / "run")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731  bytes of a file
    process = subprocess.run(
        [sys.executable, "train.py", *flags(training_data, other, *more)],
        cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, timeout=120,
    )  # fmt: skip
    assert_refused(
        process, "step-00000004: the checkpoint could not be written", "File too large", "earlier checkpoints are as they were"
    )
    assert os.listdir(other / "checkpoints") == ["step-00000002"]
    run_script("train.py", *flags(training_data, other, *more))
    assert metrics(other) == metrics(run)


def test_stops_at_target_accuracy(training_data, tmp_path):
    steps, evaluations = train(
        training_data, tmp_path / "run", "--num_train_steps=200", "--eval_every_samples=160", "--target_accuracy=0.005",
        f"--idx_train={tmp_path}/new",
    )  # fmt: skip
    for name in ("part-00000.idx", "part-00001.idx"):  # made, as they were missing
        assert (tmp_path / "new" / name).read_bytes() == (training_data / "idx/train" / name).read_bytes()
    assert len(steps) == evaluations[-1]["step"] < 200
    assert (
        evaluations[-1]["masked_lm_accuracy"] >= 0.005 > max([row["masked_lm_accuracy"] for row in evaluations[:-1]], default=0)
    )
    assert (tmp_path / "run/model").exists()


def test_export_writes_the_newest_checkpoints_model(training_data, long_run, tmp_path):
    run, more = long_run
    other = copy_of_run_as_it_was(run, 12, tmp_path / "run")
    before = metrics(other)
    process = run_script("train.py", *flags(training_data, other, *more, "--export=True"))
    assert process.stdout == f"{other}/export: the model of {other}/checkpoints/step-00000012\n"
    assert (other / "export/model.safetensors").read_bytes() == weights(run) and metrics(other) == before
    config = json.loads((training_data / "config.json").read_text()) | {"num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    wrong = ("--export", f"--bert_config_file={tmp_path}/config.json")
    process = run_script("train.py", *flags(training_data, other, *more, *wrong), check=False)
    assert_refused(process, "another model", "missing in the configuration")
    process = run_script("train.py", *flags(training_data, tmp_path / "none", *more, "--export"), check=False)
    assert_refused(process, f"{tmp_path}/none holds no checkpoint")


def test_begins_with_the_weights_of_a_checkpoint(training_data, long_run, tmp_path):
    run, _ = long_run
    saved = run / "checkpoints/step-00000012"
    _, (evaluation,) = train(training_data, tmp_path / "run", f"--init_checkpoint={saved}", "--num_train_steps=0")
    expected = [row for row in evaluations_of(run) if row["step"] == 12]
    assert evaluation == pytest.approx({**expected[0], "step": 0}, rel=1e-6)
    damaged = shutil.copytree(saved, tmp_path / "damaged")
    with open(damaged / "shared.pt", "r+b") as file:
        file.write(b"x")
    more = (f"--init_checkpoint={damaged}",)
    process = run_script("train.py", *flags(training_data, tmp_path / "other", *more), check=False)
    assert_refused(process, str(damaged), "damaged")
    config = json.loads((training_data / "config.json").read_text()) | {"intermediate_size": 48}
    (tmp_path / "config.json").write_text(json.dumps(config))
    more = (f"--init_checkpoint={saved}", f"--bert_config_file={tmp_path}/config.json")
    process = run_script("train.py", *flags(training_data, tmp_path / "other", *more), check=False)
    assert_refused(process, str(saved), "another model", "intermediate.dense.bias is [64] there and [48] in the configuration")


def test_logs_for_others(plain_run):
    """The curve off which the run was is told, MLPerf's checker takes the log, TensorBoard finds the losses."""
    output, steps, evaluations = plain_run
    assert complaints(output / "mlperf.log") == ""
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([row["loss"] for row in steps])
    found = [event.value for event in events.Scalars("evaluation/masked_lm_loss")]
    assert found == pytest.approx([row["masked_lm_loss"] for row in evaluations])


def test_accuracy_off_the_expected_curve_is_told(training_data, tmp_path):
    (tmp_path / "curve.csv").write_text("samples,masked_lm_accuracy\n16,0.5\n64,0.6\n")
    more = (f"--expected_curve={tmp_path}/curve.csv",)
    process = run_script("train.py", *flags(training_data, tmp_path / "run", *more))
    assert "warning: after 64 samples masked_lm_accuracy is 0.0" in process.stdout and "expected 0.6000" in process.stdout


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs/recipes").iterdir()), ids=lambda path: path.stem)
def test_recipes_are_flags(recipe):
    files = [f"--{name}=x" for name in ("output_dir", "tfrecord_train", "idx_train", "tfrecord_eval", "idx_eval")]
    found = parse_flags([f"@{recipe}", *files, "--seed=7"])
    assert found.num_train_steps > found.num_warmup_steps and found.train_batch_size >= 256 and found.seed == 7
    assert (ROOT / found.bert_config_file).is_file()
    if recipe.stem.startswith("mlperf"):
        assert recipe.stem == f"mlperf_{found.train_batch_size}" and found.target_accuracy == 0.72
