"""MLPerf's log, judged by the compliance checker of the package mlperf-logging."""

import argparse
import json
import subprocess
import sys

import pytest
from mlperf_logging.compliance_checker import mlp_compliance
from mlperf_logging.mllog import constants

from bert.common.files import DataError
from bert.training.mlperf_log import PREFIX, MLPerfLog, division, hyper_parameters

# configs/recipes/mlperf_256.args
RECIPE_256 = {
    "optimizer": "lamb", "learning_rate": 3.5e-4, "lamb_beta_1": 0.9, "lamb_beta_2": 0.999,
    "log_epsilon": -6.0, "lamb_weight_decay_rate": 0.01, "max_grad_norm": 1.0, "poly_power": 1.0,
    "num_train_steps": 13700, "num_warmup_steps": 0, "start_warmup_step": 0,
    "train_batch_size": 256, "steps_per_update": 2, "seed": 12345,
}  # fmt: skip
DATA = 512, 76, 156_725_653, 10_000  # tokens, predictions; training and evaluation examples
INTERVAL = 150_000


def open_log(path, kept_bytes=0, kind="closed", **changes):
    """A log as train.py opens it, whether the run begins or resumes."""
    log = MLPerfLog(str(path), True, kept_bytes)
    log.init_start(kind)
    log.hyper_parameters(hyper_parameters(argparse.Namespace(**RECIPE_256 | changes), *DATA))
    log.init_stop()
    log.run_start()
    return log


def train_and_evaluate(log, first, last, accuracy):
    log.block_start(first, INTERVAL)
    log.eval_start(last)
    log.eval_accuracy(last, accuracy)
    log.eval_stop(last)


def write_complete(path, accuracy=0.7214, **options):
    log = open_log(path, **options)
    train_and_evaluate(log, 0, 150_016, 0.518)
    train_and_evaluate(log, 150_016, 300_032, accuracy)
    log.run_stop("success", 300_032)
    log.close()
    return path


def complaints(path, ruleset="4.1.0"):
    """What the checker has against the log, as text; warnings count."""
    checker = mlp_compliance.make_checker("training", ruleset, quiet=False, werror=True)
    valid, *_ = mlp_compliance.main(str(path), f"training_{ruleset}/common.yaml", checker)
    text = "\n".join([*checker.overwritable.values(), *checker.not_overwritable])
    assert valid == (not text)
    return text


def events(path):
    return [json.loads(line.removeprefix(PREFIX)) for line in path.read_text().splitlines()]


def keys(path):
    return [event["key"] for event in events(path)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mlperf.log"


def test_closed_run_that_reaches_the_target(path):
    assert complaints(write_complete(path)) == ""


def test_the_checkers_own_command(path, tmp_path):
    command = [
        sys.executable,
        "-m",
        "mlperf_logging.compliance_checker",
        "--usage",
        "training",
        "--ruleset",
        "4.1.0",
    ]
    command += ["--log_output", tmp_path / "judgement.log"]
    for accuracy, code, word in ((0.7214, 0, "SUCCESS"), (0.6, 1, "FAILED")):
        process = subprocess.run(
            [*command, write_complete(path, accuracy)], capture_output=True, text=True
        )
        assert (process.returncode, word in process.stderr) == (code, True), process.stderr


def test_open_run_with_adamw_below_the_target(path):
    write_complete(path, accuracy=0.6, kind="open", optimizer="adamw")
    assert complaints(path) == ""
    assert {"opt_adamw_beta_1", "opt_adamw_epsilon", "opt_adamw_weight_decay"} <= set(keys(path))


def test_closed_run_below_the_target_is_refused(path):
    assert "0.720" in complaints(write_complete(path, accuracy=0.7199))


NEEDED = (
    "submission_org", "submission_platform", "submission_division", "submission_benchmark",
    "cache_clear", "init_start", "init_stop", "run_start", "run_stop", "eval_accuracy",
    "train_samples", "eval_samples", "gradient_accumulation_steps", "global_batch_size",
    "opt_base_learning_rate", "opt_lamb_epsilon", "opt_learning_rate_training_steps",
    "num_warmup_steps", "opt_learning_rate_warmup_steps", "start_warmup_step", "opt_lamb_beta_1",
    "opt_lamb_beta_2", "opt_lamb_weight_decay_rate",
)  # fmt: skip


@pytest.mark.parametrize("key", NEEDED)
def test_the_checker_misses_an_event_that_is_left_out(path, key):
    lines = write_complete(path).read_text().splitlines(keepends=True)
    kept = [line for line in lines if f'"key": "{key}"' not in line]
    assert len(kept) < len(lines)
    path.write_text("".join(kept))
    assert complaints(path)


def test_every_key_is_one_of_mlperfs(path):
    known = {value for value in vars(constants).values() if isinstance(value, str)}
    for optimizer in ("lamb", "adamw"):
        write_complete(path, optimizer=optimizer)
        # The checker takes any other key. These are in published BERT logs, or have no MLPerf key
        # for AdamW.
        others = {"max_predictions_per_seq", "opt_adamw_learning_rate_decay_poly_power"}
        assert set(keys(path)) - others <= known


def test_order_and_samples(path):
    write_complete(path)
    block = ["block_start", "block_stop", "eval_start", "eval_accuracy", "eval_stop"]
    assert keys(path)[keys(path).index("init_stop") :] == [
        "init_stop",
        "run_start",
        *block,
        *block,
        "run_stop",
    ]
    blocks = [event["metadata"] for event in events(path) if event["key"] == "block_stop"]
    assert blocks == [{"first_epoch_num": 150_016 * n, "epoch_count": 150_016} for n in (0, 1)]
    assert events(path)[-1]["metadata"] == {"status": "success", "samples_count": 300_032}


def test_a_run_stopped_and_resumed_is_one_log(path):
    log = open_log(path)
    train_and_evaluate(log, 0, 150_016, 0.518)
    log.block_start(150_016, INTERVAL)
    kept = log.bytes_written()  # a checkpoint inside a block
    at_checkpoint = path.read_bytes()
    log.eval_start(300_032)  # lost with the process: it comes again
    log.close()

    log = open_log(path, kept)
    assert path.read_bytes() == at_checkpoint
    for samples in (200_192, 200_448):  # as the training loop does, before every step
        log.block_start(samples, INTERVAL)
    train_and_evaluate(log, 200_704, 300_032, 0.7214)
    log.run_stop("success", 300_032)
    assert complaints(path) == ""
    counts = {"run_start": 1, "run_resumed": 1, "block_start": 2, "block_stop": 2, "eval_start": 2}
    assert {key: keys(path).count(key) for key in counts} == counts


def test_a_run_that_says_it_was_aborted_can_be_resumed(path):
    log = open_log(path)
    log.block_start(0, INTERVAL)
    kept = log.bytes_written()
    log.run_stop("aborted", 1024)
    log.close()
    assert keys(path)[-2:] == ["block_stop", "run_stop"]

    log = open_log(path, kept)
    train_and_evaluate(log, 1024, 150_016, 0.73)
    log.run_stop("success", 150_016)
    assert complaints(path) == ""
    assert keys(path).count("run_stop") == 1


def finish(path, status="success"):
    """A run with a checkpoint at its end; returns the bytes that belong to it."""
    log = open_log(path)
    train_and_evaluate(log, 0, 150_016, 0.73)
    kept = log.bytes_written()
    log.run_stop(status, 150_016)
    log.close()
    return kept


def test_a_finished_run_called_again_keeps_its_end(path, monkeypatch):
    kept = finish(path)
    finished = path.read_bytes()
    monkeypatch.setattr("time.time", lambda: 4e9)
    open_log(path, kept).run_stop("success", 150_016)
    assert path.read_bytes() == finished


def test_a_checkpoint_after_the_end_is_without_it(path):
    log = open_log(path)
    train_and_evaluate(log, 0, 150_016, 0.73)
    kept = log.bytes_written()
    for status in ("success", "aborted"):  # the second time nothing is written
        log.run_stop(status, 150_016)
    assert log.bytes_written() == kept
    assert events(path)[-1]["metadata"]["status"] == "success"
    assert keys(path).count("run_stop") == 1


def test_a_finished_run_that_trains_on_gets_a_new_end(path, monkeypatch):
    kept = finish(path)
    monkeypatch.setattr("time.time", lambda: 4e9)
    log = open_log(path, kept)
    train_and_evaluate(log, 150_016, 300_032, 0.74)
    log.run_stop("success", 150_016)
    assert events(path)[-1]["time_ms"] == 4e12


@pytest.mark.parametrize("torn", [b":::MLLOG {", b"\n", b"\xff", b":::MLLOG {}"])
def test_a_torn_end_after_the_checkpoint_is_dropped(path, torn):
    log = open_log(path)
    kept = log.bytes_written()
    log.close()
    path.write_bytes(path.read_bytes() + torn)
    open_log(path, kept).run_stop("aborted", 0)
    assert keys(path)[-2:] == ["run_start", "run_stop"]


def test_a_started_run_without_a_checkpoint_starts_again(path):
    write_complete(path)
    write_complete(path)
    assert complaints(path) == ""


def test_a_removed_log_begins_at_the_checkpoint(path):
    kept = finish(path)
    path.unlink()
    write_complete(path, kept_bytes=kept)
    assert complaints(path) == ""


def test_a_log_that_is_not_the_checkpoints_is_refused(path):
    kept = finish(path)
    with pytest.raises(
        DataError, match=rf"mlperf.log: 10 bytes, expected at least the {kept:,}.*remove it"
    ):
        path.write_bytes(b"x" * 10)
        MLPerfLog(str(path), True, kept)
    with pytest.raises(DataError, match="mlperf.log: line 1: found 'xxx.*expected :::MLLOG"):
        path.write_bytes(b"x" * kept)
        MLPerfLog(str(path), True, kept)


def test_other_ranks_write_nothing(path):
    log = MLPerfLog(str(path), is_main=False, kept_bytes=100)
    train_and_evaluate(log, 0, 150_016, 0.73)
    log.run_stop("success", 150_016)
    assert log.bytes_written() == 0
    log.close()
    assert not path.exists()


def test_a_number_that_json_does_not_have_is_an_error(path):
    with pytest.raises(ValueError):
        open_log(path).eval_accuracy(0, float("nan"))


def test_division():
    assert division("lamb", 0.720, 512, 76, True) == "closed"
    others = [
        ("adamw", 0.72, 512, 76, True),
        ("lamb", None, 512, 76, True),
        ("lamb", 0.71, 512, 76, True),
    ]
    others += [
        ("lamb", 0.72, 128, 76, True),
        ("lamb", 0.72, 512, 20, True),
        ("lamb", 0.72, 512, 76, False),
    ]
    assert {division(*other) for other in others} == {"open"}
