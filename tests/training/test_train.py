"""train.py as users run it, with torchrun on the CPU: losses do not depend on ranks or
accumulation; what a run leaves.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import mlperf_logging.rcp_checker
import pytest
import torch
from conftest import ROOT, UNICODE_TEXT, assert_refused, create
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import (
    STEPS,
    count_records,
    evaluations_of,
    flags,
    losses,
    steps_of,
    torchrun,
    torchrun_agents,
    train,
    train_here,
    train_several,
)
from transformers import AutoTokenizer

import bert.common.quiet_imports  # before transformers
import bert.training.run
from bert.common.files import DataError
from bert.training import checkpoint
from bert.training.checkpoint import load_shared
from bert.training.cost import disk_bytes
from bert.training.data_files import is_folder_of_indexes, splits_of
from bert.training.flag_checks import check, warnings
from bert.training.hidden_words import load_both
from bert.training.mlperf_log import MLPerfLog
from bert.training.model import load_config
from bert.training.optimization import Lamb
from tests.training.test_mlperf_log import complaints
from tokenization import FullTokenizer
from train import parse_flags

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain_run(training_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("plain") / "run"
    return output, *train(training_data, output, "--eval_at_start=True", "--shuffle=False")


def test_what_a_run_leaves(training_data, plain_run):
    output, steps, evaluations = plain_run
    names = [
        ".lock",
        "best",
        "checkpoints",
        "curves.png",
        "flags.json",
        "metrics.jsonl",
        "mlperf.log",
        "model",
        "tensorboard",
    ]
    assert sorted(os.listdir(output)) == names
    assert os.listdir(output / "checkpoints") == [f"step-{STEPS:08d}"]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["learning_rate"] for row in steps] == pytest.approx([0.0, 0.5e-2, 0.5e-2, 0.25e-2])
    assert [row["step"] for row in evaluations] == [0, STEPS]
    assert {row["examples"] for row in evaluations} == {
        count_records(training_data / "idx/eval/all.idx")
    }
    assert evaluations[1]["masked_lm_loss"] < evaluations[0]["masked_lm_loss"]
    for row in steps:
        assert row["loss"] == pytest.approx(row["mlm_loss"] + row["nsp_loss"])
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    words = "Anarchism is a \u00c9tat, philosophy: unaffable"
    assert tokenizer.tokenize(words) == FullTokenizer(training_data / "vocab.txt").tokenize(words)
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    # One umask made them all.
    assert len({path.stat().st_mode for path in output.rglob("*") if path.is_file()}) == 1


USE_OF_A_MODEL = """
import json, sys
from transformers import TrainingArguments, pipeline

fill_mask = pipeline("fill-mask", model=sys.argv[1], tokenizer_kwargs={"truncation": True})
texts = ("Anarchism is a [MASK].", "a [MASK] " + "the " * 699)
print(json.dumps([fill_mask(text) for text in texts]))
"""


def test_saved_model_fills_masks_in_the_environment(training_data, plain_run, tmp_path):
    """As a user's own script would: without what bert/common/quiet_imports.py sets, which hides
    TensorFlow from transformers.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("USE_", "TF_"))
    }
    process = subprocess.run(
        [sys.executable, "-c", USE_OF_A_MODEL, plain_run[0] / "model"],
        cwd=tmp_path, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    vocabulary = set((training_data / "vocab.txt").read_text(encoding="utf-8").splitlines())
    for guesses in json.loads(process.stdout):
        assert len({guess["token"] for guess in guesses}) == 5
        assert all(guess["token_str"] in vocabulary and 0 < guess["score"] < 1 for guess in guesses)
        assert sorted((guess["score"] for guess in guesses), reverse=True) == [
            guess["score"] for guess in guesses
        ]


def test_files_are_as_large_as_a_dry_run_says(training_data, plain_run):
    disk = disk_bytes(load_config(training_data / "config.json"), STEPS, 1000, 3)
    assert len(os.listdir(plain_run[0] / "checkpoints")) == disk.num_checkpoints
    for file, expected in (
        (f"checkpoints/step-{STEPS:08d}/shared.pt", disk.checkpoint),
        ("model/model.safetensors", disk.model),
        ("best/model.safetensors", disk.model),
    ):
        overhead = os.path.getsize(plain_run[0] / file) - expected  # names and shapes of tensors
        assert 0 < overhead < 0.03 * expected, file


def test_fill_mask_compares_with_the_weights_at_the_start(training_data, tmp_path):
    """They are drawn again, by the seed: a run that has hardly moved ends with the same."""
    flags = ("--num_train_steps=1", "--learning_rate=1e-30", "--seed=7")
    train_here(training_data, tmp_path / "run", *flags)
    before, after, _ = load_both(str(tmp_path / "run"))
    for name, weight in before.named_parameters():
        assert torch.allclose(weight, dict(after.named_parameters())[name], atol=1e-20), name


def test_accumulation_changes_nothing(training_data, plain_run, tmp_path):
    train_here(training_data, tmp_path / "run", "--steps_per_update=4", "--shuffle=False")
    assert losses(steps_of(tmp_path / "run")) == [
        pytest.approx(row, rel=1e-5) for row in losses(plain_run[1])
    ]


@pytest.fixture(scope="module")
def runs_of_two_ranks(training_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    in_file_order = ("--eval_at_start=True", "--shuffle=False", "--steps_per_update=2")
    runs = {folder / "in_file_order": in_file_order, folder / "shuffled": ()}
    train_several(training_data, runs, processes=2)
    return folder


def test_evaluation_does_not_depend_on_ranks(runs_of_two_ranks, plain_run):
    evaluations = evaluations_of(runs_of_two_ranks / "in_file_order")
    assert evaluations[0] == pytest.approx(plain_run[2][0], rel=1e-6)


def test_two_ranks_make_the_updates_of_one(training_data, runs_of_two_ranks, tmp_path):
    """The loader's global batches do not depend on the number of ranks, shuffled or not; nor does
    the loss.
    """
    train_here(training_data, tmp_path / "one")
    assert losses(steps_of(runs_of_two_ranks / "shuffled")) == [
        pytest.approx(row, rel=1e-5) for row in losses(steps_of(tmp_path / "one"))
    ]


def test_two_agents_train_as_one_with_two_processes(training_data, runs_of_two_ranks, tmp_path):
    """As on two machines that share a folder."""
    agents = torchrun_agents(2, "train.py", *flags(training_data, tmp_path / "run"))
    for agent in agents:
        assert (agent.returncode, agent.stderr) == (0, "")
    assert "2 x cpu" in agents[0].stdout and agents[1].stdout == ""
    assert losses(steps_of(tmp_path / "run")) == [
        pytest.approx(row, rel=1e-6) for row in losses(steps_of(runs_of_two_ranks / "shuffled"))
    ]


def test_saved_model_evaluates_the_same(training_data, plain_run, tmp_path):
    output, _, evaluations = plain_run
    train_here(
        training_data, tmp_path / "run", f"--init_checkpoint={output}/model", "--num_train_steps=0"
    )
    assert steps_of(tmp_path / "run") == []
    again = evaluations_of(tmp_path / "run")
    assert {**again[0], "step": STEPS} == pytest.approx(evaluations[-1], rel=1e-6)


def test_same_seed_same_losses(training_data, tmp_path):
    seeds = {"first": 1, "second": 1, "other": 2}
    for name, seed in seeds.items():
        train_here(training_data, tmp_path / name, f"--seed={seed}")
    first, second, other = (losses(steps_of(tmp_path / name)) for name in seeds)
    assert first == second != other


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_flags_reach_the_optimizer(training_data, tmp_path, monkeypatch, optimizer):
    built, parallelize = [], bert.training.run.parallelize

    def note(plugin, module, optimizer, *others):
        built.append(optimizer)
        return parallelize(plugin, module, optimizer, *others)

    monkeypatch.setattr(bert.training.run, "parallelize", note)
    train_here(
        training_data, tmp_path / "run", f"--optimizer={optimizer}", "--num_train_steps=0",
        "--lamb_beta_1=0.8", "--lamb_beta_2=0.9", "--log_epsilon=-4", "--max_grad_norm=0.5",
        "--lamb_weight_decay_rate=0.1", f"--adam_bias_correction={optimizer == 'adamw'}",
    )  # fmt: skip
    (found,) = built
    assert isinstance(found, Lamb) == (optimizer == "lamb") and found.max_grad_norm == 0.5
    regular, excepted = found.param_groups
    assert (regular["weight_decay"], excepted["weight_decay"]) == (0.1, 0.0)
    for group in (regular, excepted):
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), pytest.approx(1e-4))
        assert group["bias_correction"]


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_loss_falls(training_data, tmp_path, optimizer):
    train_here(training_data, tmp_path / "run", "--num_train_steps=12", f"--optimizer={optimizer}")
    steps = steps_of(tmp_path / "run")
    assert steps[-1]["mlm_loss"] < steps[0]["mlm_loss"] - 0.05


def test_divergence_stops_the_run(training_data, tmp_path):
    more = (
        "--learning_rate=1e30",
        "--optimizer=adamw",
        "--num_train_steps=20",
        "--save_checkpoints_steps=1",
        "--keep_checkpoint_max=0",
    )
    process = train_here(training_data, tmp_path / "run", *more, check=False)
    assert_refused(process, "training has diverged", "--learning_rate", "part-0000")
    assert process.stdout.count("is skipped") == 4
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped", False) for row in rows][-6:] == [False] + [True] * 5
    assert rows[-1]["loss"] is None
    # The steps that were left out changed nothing that was saved.
    last_good = len(rows) - 5
    newest, good = (
        load_shared(tmp_path / f"run/checkpoints/step-{step:08d}")
        for step in (last_good + 2, last_good)
    )
    for kind in ("weights", "m", "v"):
        assert all(map(torch.equal, newest["model"][kind].values(), good["model"][kind].values()))
    assert not (tmp_path / "run/model").exists()


def test_everything_wrong_is_reported_at_once(training_data, plain_run, tmp_path):
    config = json.loads((training_data / "config.json").read_text()) | {
        "vocab_size": 1000,
        "hidden_size": 33,
        "num_attention_heads": 3,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    wrong = {
        "--start_warmup_step=3": "0 or less", "--eval_every_samples=0": "1 or more",
        "--learning_rate=-1": "0 or more",
        "--max_seq_length=128": "examples of 32 tokens, but --max_seq_length=128",
        "--max_predictions_per_seq=20": "examples of 5 predictions, but",
        "--plugin=zero1": "CUDA GPUs only",
        "--tp_size=2": "num_attention_heads 3 is not divisible by --tp_size=2",
        "--expected_curve=absent.csv": "absent.csv: no such file",
        f"--bert_config_file={tmp_path}/config.json":
            "vocab.txt has 3190 tokens, the configuration has vocab_size 1000",
        "--seed=3": "was started with 12345",
    }  # fmt: skip
    process = train_here(training_data, plain_run[0], *wrong, check=False)
    assert_refused(
        process,
        *wrong.values(),
        "hidden_size 33",
        "was started with 32",
        "--tp_size=2 is tensor parallelism",
    )
    assert "--tp_size=2 does not divide the 1 processes" in process.stderr
    other = (
        "--bert_config_file=absent", "--train_batch_size=10", "--steps_per_update=4",
        "--compile", "--plugin=hybrid",
    )  # fmt: skip
    process = train_here(training_data, plain_run[0], *other, check=False)
    assert_refused(
        process,
        "--bert_config_file",
        "absent",
        "not divisible by 1 processes x --steps_per_update=4",
        "--compile cannot be combined with --plugin=hybrid",
    )


def test_folder_of_indexes_that_another_rank_makes_just_now(tmp_path, monkeypatch):
    folder, isdir = tmp_path / "idx", os.path.isdir

    def isdir_and_make(path):
        found = isdir(path)
        folder.mkdir(exist_ok=True)
        return found

    monkeypatch.setattr(os.path, "isdir", isdir_and_make)
    assert is_folder_of_indexes(str(folder)) and isdir(folder)
    monkeypatch.undo()
    file = tmp_path / "part.idx"
    file.touch()
    for where, is_folder in (
        (folder, True),
        (tmp_path / "absent", True),
        (file, False),
        (tmp_path / "*.idx", False),
    ):
        assert is_folder_of_indexes(str(where)) == is_folder


def test_what_is_allowed_but_rarely_meant_is_said(training_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "again").hardlink_to(training_data / "train/part-00001")
    (data / "link").symlink_to(training_data / "train/part-00000")
    shorter = tmp_path / "shorter"
    create(UNICODE_TEXT, shorter, "--max_seq_length=24", "--max_predictions_per_seq=5")

    def said(*more):
        found = parse_flags(flags(training_data, tmp_path / "run", *more))
        return warnings(found, *splits_of(found))

    assert said() == []
    (both,) = said(f"--tfrecord_eval={data}")
    assert f"{data}/again and 1 more: both in --tfrecord_train and in --tfrecord_eval" in both
    assert said(f"--tfrecord_eval={data}", "--num_train_steps=0") == []  # only evaluated
    (lengths,) = said(f"--tfrecord_eval={shorter}")
    assert lengths == "the evaluation examples have 24 tokens, the training examples 32"
    assert said("--num_warmup_steps=5", "--start_warmup_step=-2") == []
    (warmup,) = said("--num_warmup_steps=4")
    assert "never reaches --learning_rate=0.01" in warmup


def test_start_says_where_weights_come_from(training_data, tmp_path):
    """The folder looks like a pattern; what a killed run left in it is removed."""
    run = tmp_path / "run[1]"
    own_indexes = ("--idx_train=", "--idx_eval=")
    new = train_here(training_data, run, *own_indexes, "--num_train_steps=2")
    assert "random weights, by --seed=12345; no --init_checkpoint" in new.stdout
    assert f"{run}/idx/train: a new folder, for the indexes of the TFRecords" in new.stdout
    assert "warning: --num_warmup_steps=2 is no shorter than --num_train_steps=2" in new.stdout
    left_over = [run / name for name in ("checkpoints/.step-00000015.tmp", "model.tmp", "best.tmp")]
    for folder in left_over:
        folder.mkdir()
        (folder / "shared.pt").touch()
    resumed = train_here(training_data, run, *own_indexes, "--num_train_steps=2")
    assert "resumes from" in resumed.stdout and "random weights" not in resumed.stdout
    assert "new folder" not in resumed.stdout
    assert not any(folder.exists() for folder in left_over)
    loaded = train_here(
        training_data, tmp_path / "other", f"--init_checkpoint={run}/model", "--num_train_steps=0"
    )
    assert f"weights from {run}/model" in loaded.stdout


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_corrupt_record_of_flags_is_refused(training_data, tmp_path, content):
    (tmp_path / "flags.json").write_text(content)
    process = train_here(training_data, tmp_path, check=False)
    assert_refused(
        process, f"{tmp_path}/flags.json: not the flags of a run", "choose another --output_dir"
    )


def test_errors_under_torchrun_are_reported_once_and_first(training_data, tmp_path):
    process = torchrun(2, "train.py", *flags(training_data, tmp_path / "run", "--learning_rate=-1"))
    assert process.returncode != 0
    first, *others = process.stderr.splitlines()
    assert re.fullmatch("error( on rank 1)?: --learning_rate=-1.0: expected 0 or more", first)
    assert not any("--learning_rate=-1.0: expected" in line for line in others)


def test_error_of_one_rank_is_reported_once(training_data, tmp_path):
    """A record that one of two ranks reads is corrupted after the checks at the start."""
    shutil.copytree(training_data / "train", tmp_path / "train")
    offset, _ = (training_data / "idx/train/part-00000.idx").read_text().splitlines()[20].split()
    with open(tmp_path / "train/part-00000", "r+b") as file:
        file.seek(int(offset) + 100)
        file.write(b"damage")
    process = torchrun(
        2,
        "train.py",
        *flags(
            training_data, tmp_path / "run", f"--tfrecord_train={tmp_path}/train", "--shuffle=False"
        ),
    )
    assert process.returncode != 0
    assert "[rank" not in process.stderr  # how torch heads stack traces
    (error,) = [line for line in process.stderr.splitlines() if line.startswith("error")]
    assert "part-00000" in error and "checksum" in error


def test_ids_beyond_the_model_are_refused(training_data, tmp_path):
    config = json.loads((training_data / "config.json").read_text()) | {"vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_text(
        "".join((ROOT / "vocab.txt").read_text().splitlines(keepends=True)[:1000])
    )
    more = [f"--bert_config_file={tmp_path}/config.json", f"--vocab_file={tmp_path}/vocab.txt"]
    process = train_here(training_data, tmp_path / "run", *more, check=False)
    assert_refused(process, "token id", "vocab_size 1000")
    assert os.listdir(tmp_path / "run") == [".lock"]
    with pytest.raises(
        DataError, match="vocab.txt has 3190 tokens, the configuration has vocab_size 1000"
    ):
        check(parse_flags(flags(training_data, tmp_path / "run", more[0])), 1)


def test_sequences_longer_than_the_model_are_refused(training_data, tmp_path):
    config = json.loads((training_data / "config.json").read_text()) | {
        "max_position_embeddings": 16
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        DataError,
        match=(
            "part-00000: examples of 32 tokens, but .*/config.json has max_position_embeddings 16"
        ),
    ):
        check(
            parse_flags(
                flags(training_data, tmp_path / "run", f"--bert_config_file={tmp_path}/config.json")
            ),
            1,
        )


def test_stops_at_target_accuracy(training_data, tmp_path, monkeypatch):
    """MLPerf's time ends with the evaluation that reaches the target, before anything is saved."""
    events, log_event = [], MLPerfLog._event
    save, save_model = checkpoint.save, bert.training.run.save_model

    def note(event, function):
        return lambda *arguments: (events.append(event), function(*arguments))

    def note_and_log(self, key, *others, **more):
        events.append(key)
        log_event(self, key, *others, **more)

    monkeypatch.setattr(MLPerfLog, "_event", note_and_log)
    monkeypatch.setattr(checkpoint, "save", note("checkpoint", save))
    monkeypatch.setattr(bert.training.run, "save_model", note("model", save_model))
    train_here(
        training_data, tmp_path / "run", "--num_train_steps=200", "--eval_every_samples=160",
        "--target_accuracy=0.005", f"--idx_train={tmp_path}/new",
    )  # fmt: skip
    steps, evaluations = steps_of(tmp_path / "run"), evaluations_of(tmp_path / "run")
    for name in ("part-00000.idx", "part-00001.idx"):  # made, as they were missing
        assert (tmp_path / "new" / name).read_bytes() == (
            training_data / "idx/train" / name
        ).read_bytes()
    assert len(steps) == evaluations[-1]["step"] < 200
    assert (
        evaluations[-1]["masked_lm_accuracy"]
        >= 0.005
        > max([row["masked_lm_accuracy"] for row in evaluations[:-1]], default=0)
    )
    assert events[-5:] == ["eval_stop", "run_stop", "model", "checkpoint", "model"]
    assert (tmp_path / "run/model").exists() and (tmp_path / "run/best").exists()
    assert complaints(tmp_path / "run/mlperf.log") == ""


def test_logs_for_others(plain_run):
    """The curve that the run left is reported, MLPerf's checker takes the log, TensorBoard finds
    the losses.
    """
    output, steps, evaluations = plain_run
    assert complaints(output / "mlperf.log") == ""
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(
        [row["loss"] for row in steps]
    )
    found = [event.value for event in events.Scalars("evaluation/masked_lm_loss")]
    assert found == pytest.approx([row["masked_lm_loss"] for row in evaluations])


def test_accuracy_off_the_expected_curve_is_reported(training_data, tmp_path):
    (tmp_path / "curve.csv").write_text("samples,masked_lm_accuracy\n16,0.5\n64,0.6\n")
    more = (f"--expected_curve={tmp_path}/curve.csv",)
    process = train_here(training_data, tmp_path / "run", *more)
    assert (
        "warning: after 64 samples masked_lm_accuracy is 0.0" in process.stdout
        and "expected 0.6000" in process.stdout
    )


# Batch, rate, both betas, decay, steps of warm-up, at which it begins, steps, power of the rate's
# decay; as published by those whom the recipes name.
RECIPES = {
    "mlperf_256": (256, 3.5e-4, 0.9, 0.999, 0.01, 0, 0, 13_700, 1.0),
    "mlperf_448": (448, 4.25e-4, 0.9, 0.999, 0.01, 0, 0, 6_700, 1.0),
    "mlperf_1536": (1536, 2e-3, 0.66, 0.996, 0.01, 0, 0, 2_254, 1.0),
    "mlperf_3072": (3072, 2e-3, 0.66, 0.998, 0.01, 100, 0, 1_141, 1.0),
    "mlperf_8192": (8192, 2.88293e-3, 0.88, 0.88, 0.0166629, 287, -76, 600, 1.0),
    "nvidia_phase1": (65536, 6e-3, 0.9, 0.999, 0.01, round(0.2843 * 7038), 0, 7_038, 0.5),
    "nvidia_phase2": (32768, 4e-3, 0.9, 0.999, 0.01, round(0.128 * 1563), 0, 1_563, 0.5),
    "google_scratch": (256, 1e-4, 0.9, 0.999, 0.01, 10_000, 0, 1_000_000, 1.0),
}
SEQ_LENGTHS = {"nvidia_phase1": 128, "google_scratch": None}  # of the others 512


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "configs/recipes").iterdir()), ids=lambda path: path.stem
)
def test_recipes_are_as_published(recipe):
    files = [
        f"--{name}=x"
        for name in ("output_dir", "tfrecord_train", "idx_train", "tfrecord_eval", "idx_eval")
    ]
    found = parse_flags([f"@{recipe}", *files, "--seed=7"])
    assert RECIPES[recipe.stem] == (
        found.train_batch_size, found.learning_rate, found.lamb_beta_1, found.lamb_beta_2,
        found.lamb_weight_decay_rate, found.num_warmup_steps, found.start_warmup_step,
        found.num_train_steps, found.poly_power,
    )  # fmt: skip
    is_mlperf = recipe.stem.startswith("mlperf")
    assert found.optimizer == ("adamw" if recipe.stem == "google_scratch" else "lamb")
    assert (found.log_epsilon, found.max_grad_norm, found.adam_bias_correction) == (-6, 1.0, False)
    assert found.target_accuracy == (0.72 if is_mlperf else None)
    assert found.max_seq_length == SEQ_LENGTHS.get(recipe.stem, 512)
    assert found.max_predictions_per_seq == (76 if is_mlperf else None)
    assert (ROOT / found.bert_config_file).is_file() and found.seed == 7


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("mlperf")])
def test_mlperf_recipes_are_its_reference_convergence_points(name):
    """As MLPerf's own package has them, of round 4.1."""
    checker = os.path.dirname(mlperf_logging.rcp_checker.__file__)
    with open(f"{checker}/training_4.1.0/rcps_bert.json") as file:
        point = json.load(file)[name.replace("mlperf", "bert_ref")]
    published = point["Hyperparams"]
    assert RECIPES[name][:8] == (
        point["BS"], published["opt_base_learning_rate"], published["opt_lamb_beta_1"],
        published["opt_lamb_beta_2"], published["opt_lamb_weight_decay_rate"],
        published["num_warmup_steps"], published["start_warmup_step"],
        published["opt_learning_rate_training_steps"],
    )  # fmt: skip
    assert published["opt_epsilon"] == 1e-6
