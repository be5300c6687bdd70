"""train.py as users run it, with torchrun on the CPU: losses do not depend on ranks or accumulation; what a run leaves."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, UNICODE_TEXT, assert_refused, create, run_script

STEPS = 4
TORCHRUN = os.path.join(os.path.dirname(sys.executable), "torchrun")


@pytest.fixture(scope="session")
def training_data(tmp_path_factory):
    """A folder with train/, eval/, their indexes in idx/ and a small model's config.json."""
    folder = tmp_path_factory.mktemp("training_data")
    shape = ("--max_seq_length=32", "--max_predictions_per_seq=5")
    create(UNICODE_TEXT, folder / "train/part-00000", *shape, "--dupe_factor=1")
    create(UNICODE_TEXT, folder / "train/part-00001", *shape, "--dupe_factor=1", "--random_seed=1")
    create(UNICODE_TEXT, folder / "eval/all", *shape, "--dupe_factor=1", "--random_seed=2")
    run_script(
        "make_idx.py", f"--tfrecord_train={folder}/train", f"--tfrecord_eval={folder}/eval", f"--output_idx={folder}/idx"
    )
    config = json.loads((ROOT / "configs" / "bert_tiny.json").read_text())
    config |= {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def flags(data, output, *more):
    return [
        f"--bert_config_file={data}/config.json", f"--output_dir={output}",
        f"--tfrecord_train={data}/train", f"--idx_train={data}/idx/train", f"--tfrecord_eval={data}/eval", f"--idx_eval={data}/idx/eval",
        "--train_batch_size=16", "--learning_rate=1e-2", f"--num_train_steps={STEPS}", "--num_warmup_steps=2", "--num_threads=1", *more,
    ]  # fmt: skip


def train(data, output, *more, processes=1):
    """Runs train.py; returns (step rows, evaluation rows) of its metrics.jsonl."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # silences torchrun
    process = subprocess.run(
        [TORCHRUN, "--standalone", f"--nproc_per_node={processes}", "train.py", *flags(data, output, *more)],
        cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == ""  # no banners
    rows = [json.loads(line) for line in open(f"{output}/metrics.jsonl")]
    return [row for row in rows if "loss" in row], [row for row in rows if "masked_lm_accuracy" in row]


def losses(rows):
    return [(row["mlm_loss"], row["nsp_loss"], row["grad_norm"]) for row in rows]


@pytest.fixture(scope="module")
def plain_run(training_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("plain") / "run"
    return output, *train(training_data, output, "--eval_at_start=True", "--shuffle=False")


def count_records(index):
    return len(index.read_text().splitlines())


def test_what_a_run_leaves(training_data, plain_run):
    output, steps, evaluations = plain_run
    assert sorted(os.listdir(output)) == ["curves.png", "metrics.jsonl", "model"]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["learning_rate"] for row in steps] == pytest.approx([0.0, 0.5e-2, 0.5e-2, 0.25e-2])
    assert [row["step"] for row in evaluations] == [0, STEPS]
    assert {row["examples"] for row in evaluations} == {count_records(training_data / "idx/eval/all.idx")}
    assert evaluations[1]["masked_lm_loss"] < evaluations[0]["masked_lm_loss"]
    for row in steps:
        assert row["loss"] == pytest.approx(row["mlm_loss"] + row["nsp_loss"])
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
    process = run_script(
        "train.py", *flags(training_data, tmp_path / "run", "--learning_rate=1e30", "--optimizer=adamw"), check=False
    )
    assert_refused(process, "training has diverged", "--learning_rate")
    assert not (tmp_path / "run/model").exists()


def test_everything_wrong_is_told_at_once(training_data, plain_run):
    wrong = (
        "--train_batch_size=10",
        "--steps_per_update=4",
        "--start_warmup_step=3",
        "--eval_every_samples=0",
        "--bert_config_file=absent",
    )
    process = run_script("train.py", *flags(training_data, plain_run[0], *wrong), check=False)
    assert_refused(
        process, "--train_batch_size=10", "--start_warmup_step=3", "--eval_every_samples=0", "absent", "a run was made here"
    )


def test_errors_under_torchrun_are_told_once_and_first(training_data, tmp_path):
    command = [
        TORCHRUN,
        "--standalone",
        "--nproc_per_node=2",
        "train.py",
        *flags(training_data, tmp_path / "run", "--learning_rate=-1"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120)
    assert process.returncode != 0
    assert process.stderr.startswith("error: --learning_rate=-1.0: expected 0 or more\n")
    assert process.stderr.count("--learning_rate=-1.0: expected") == 1


def test_ids_beyond_the_model_are_refused(training_data, tmp_path):
    config = json.loads((training_data / "config.json").read_text()) | {"vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    process = run_script(
        "train.py", *flags(training_data, tmp_path / "run", f"--bert_config_file={tmp_path}/config.json"), check=False
    )
    assert_refused(process, "token id", "vocab_size 1000")
    assert not (tmp_path / "run").exists()


def test_sequences_longer_than_the_model_are_refused(training_data, tmp_path):
    config = json.loads((training_data / "config.json").read_text()) | {"max_position_embeddings": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    process = run_script(
        "train.py", *flags(training_data, tmp_path / "run", f"--bert_config_file={tmp_path}/config.json"), check=False
    )
    assert_refused(process, "32", "max_position_embeddings", "16")
