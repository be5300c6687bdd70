"""TensorBoard's events, read back with TensorBoard and TensorFlow."""

import math
import os
import subprocess
import sys
import time

import pytest

from bert.training.tensorboard_log import TensorboardLog
from tests.conftest import ROOT


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "tensorboard"


def shown(folder):
    """What TensorBoard shows: {tag: {step: value}}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: {e.step: e.value for e in accumulator.Scalars(tag)}
        for tag in accumulator.Tags()["scalars"]
    }


def train(folder, first, last, loss, purge_step=None):
    log = TensorboardLog(str(folder), first if purge_step is None else purge_step)
    for step in range(first, last + 1):
        log.step(step, {"loss": loss + step, "learning_rate": 1e-4})
        if step % 2 == 0:
            log.evaluation(step, {"masked_lm_accuracy": step / 16 + loss / 1024})
    return log


def test_what_is_written_is_shown(folder):
    train(folder, 1, 4, 0.0).close()
    assert shown(folder) == {
        "train/loss": {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0},
        "train/learning_rate": dict.fromkeys(range(1, 5), pytest.approx(1e-4)),
        "evaluation/masked_lm_accuracy": {2: 0.125, 4: 0.25},
    }


def test_tensorflow_reads_every_record(folder):
    import tensorflow as tf

    before = time.time()
    train(folder, 1, 2, 0.0).close()
    after = time.time()
    (path,) = folder.iterdir()
    events = list(tf.compat.v1.train.summary_iterator(str(path)))
    assert [event.WhichOneof("what") for event in events] == [
        "file_version",
        "session_log",
        "summary",
        "summary",
        "summary",
    ]
    assert events[0].file_version == "brain.Event:2"
    assert all(before <= event.wall_time <= after for event in events)


def test_a_resumed_run_hides_what_was_after_the_checkpoint(folder):
    train(folder, 1, 7, 0.0).close()
    train(folder, 4, 5, 512.0).close()  # from the checkpoint after step 3
    found = shown(folder)
    assert found["train/loss"] == {1: 1.0, 2: 2.0, 3: 3.0, 4: 516.0, 5: 517.0}
    # the evaluation at step 6 has not come again, and is hidden all the same
    assert found["evaluation/masked_lm_accuracy"] == {2: 0.125, 4: 0.75}


def test_what_is_not_purged_stays(folder):
    train(folder, 1, 3, 0.0).close()
    train(folder, 4, 4, 0.0, purge_step=100).close()
    assert list(shown(folder)["train/loss"]) == [1, 2, 3, 4]


def test_a_run_that_starts_again_shows_nothing_of_the_earlier_one(folder):
    train(folder, 0, 7, 0.0).close()
    train(folder, 0, 1, 512.0).close()
    assert shown(folder)["train/loss"] == {0: 512.0, 1: 513.0}


def test_a_file_that_ends_inside_a_record_does_not_hide_the_next(folder):
    train(folder, 1, 3, 0.0).close()
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-7])  # killed while it wrote step 3
    train(folder, 3, 4, 512.0).close()
    assert shown(folder)["train/loss"] == {1: 1.0, 2: 2.0, 3: 515.0, 4: 516.0}


def test_many_starts_are_read_in_their_order(folder):
    for start in range(12):
        train(folder, 1, 1, float(start)).close()
    assert len(list(folder.iterdir())) == 12
    assert shown(folder)["train/loss"] == {1: 12.0}


def test_numbers_that_are_none_or_not_finite(folder):
    log = TensorboardLog(str(folder), 0)
    log.step(1, {"loss": None, "grad_norm": 2.0})
    log.step(2, {"loss": math.nan, "grad_norm": math.inf})
    log.close()
    found = shown(folder)
    assert list(found["train/loss"]) == [2] and math.isnan(found["train/loss"][2])
    assert found["train/grad_norm"] == {1: 2.0, 2: math.inf}


def test_flush_and_evaluation_are_seen_while_the_file_is_open(folder):
    log = TensorboardLog(str(folder), 0)
    log.step(1, {"loss": 1.0})
    log.flush()
    assert shown(folder) == {"train/loss": {1: 1.0}}
    log.step(2, {"loss": 2.0})
    log.evaluation(2, {"masked_lm_accuracy": 0.5})
    assert shown(folder) == {
        "train/loss": {1: 1.0, 2: 2.0},
        "evaluation/masked_lm_accuracy": {2: 0.5},
    }
    log.close()


def test_no_tensorflow_and_nothing_printed(folder):
    code = (
        "import sys; from bert.training.tensorboard_log import TensorboardLog; "
        "log = TensorboardLog(sys.argv[1], 0); log.step(1, {'loss': 1.0}); log.evaluation(1, "
        "{'masked_lm_accuracy': 0.5}); log.close(); sys.exit('tensorflow' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error(folder):
    folder.mkdir(parents=True)
    log = TensorboardLog(str(folder), 0)
    (path,) = folder.iterdir()
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), log._file.fileno())
    with pytest.raises(OSError):
        log.evaluation(1, {"masked_lm_accuracy": 0.5})
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), log._file.fileno())  # so that what is left over can be closed
    log.close()
