"""What the recorder makes of steps that went wrong."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from bert.common.files import DataError
from bert.training.metrics import Recorder


def records_between(start, end):
    return [(f"part-{start[0]:05d}", number) for number in range(start[1], end[1])]


@pytest.fixture
def record(process_group, tmp_path):
    """A function that records a step of a gradient norm, loss and loss scale; its `rows()` are
    those of metrics.jsonl.
    """
    recorder = Recorder(str(tmp_path), 1000, 8, 32, lambda speed, tokens: None, records_between)
    steps = iter(range(1, 1000))

    def record_step(norm, loss=2.0, scale=None):
        results = torch.tensor([loss, 0.5, 0.25])
        scale = None if scale is None else torch.tensor(scale)
        recorder.step(
            next(steps),
            results,
            torch.tensor(norm),
            1e-3,
            torch.tensor(100.0),
            scale,
            (3, 4088),
            (3, 4096),
        )
        recorder.bytes_written()  # nothing waits any longer

    record_step.recorder = recorder
    record_step.rows = lambda: [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    return record_step


def test_five_in_a_row_end_the_run(record, capsys):
    for norm in (1.0, *[math.nan] * 4, 1.0, *[math.inf] * 4):
        record(norm, loss=norm)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "is skipped" in line]
    assert len(warnings) == 8 and "step 2: masked LM loss nan" in warnings[0]
    assert (
        "part-00003 --record=4088, part-00003 --record=4089, part-00003 --record=4090 and 5 more"
        in warnings[0]
    )
    with pytest.raises(
        DataError,
        match=(
            "step 11: .* 5 updates in a row .* lower --learning_rate.* "
            "the weights are those of step 6"
        ),
    ):
        record(math.nan, loss=math.nan)
    rows = record.rows()
    assert [row.get("skipped", False) for row in rows] == [False, *[True] * 4, False, *[True] * 5]
    assert (
        rows[0]["grad_norm"] == 1.0
        and rows[0]["mlm_accuracy"] == 0.25
        and rows[1]["loss"] is rows[1]["grad_norm"] is None
    )
    assert (
        rows[1]["examples"] == [["part-00003", number] for number in range(4088, 4096)]
        and "examples" not in rows[0]
    )


def test_overflows_lower_the_loss_scale_until_it_is_not_to_blame(record, capsys):
    scale = 2.0**16
    while scale > 1.0:
        scale /= 2
        record(math.inf, scale=scale)  # more than 5 in a row
    record(1.0, scale=scale)
    assert (
        "too large for fp16, the update is skipped and the loss scale lowered to 32768"
        in capsys.readouterr().out
    )
    assert not any("examples" in row for row in record.rows())
    with pytest.raises(DataError, match="loss scale has fallen below 1"):
        record(math.inf, scale=0.5)


def test_a_loss_that_is_not_finite_is_no_matter_of_scale(record):
    for _ in range(4):
        record(math.nan, loss=math.nan, scale=1024.0)
    with pytest.raises(DataError, match="5 updates in a row"):
        record(math.nan, loss=math.nan, scale=1024.0)


def test_a_log_that_lost_its_end_is_not_continued(record, tmp_path):
    record(1.0)
    with pytest.raises(DataError, match="metrics.jsonl: .* bytes, expected at least the 10,000"):
        Recorder(
            str(tmp_path),
            1000,
            8,
            32,
            lambda speed, tokens: None,
            records_between,
            first_step=2,
            kept_bytes=10_000,
        )
    assert len(record.rows()) == 1


def test_an_evaluation_that_is_not_finite_is_null(record):
    metrics = {
        "masked_lm_accuracy": 0.0,
        "masked_lm_loss": math.nan,
        "mask_accuracy": math.nan,
        "mask_baseline": math.nan,
        "next_sentence_accuracy": 0.5,
        "next_sentence_baseline": 0.5,
        "next_sentence_loss": math.inf,
    }
    record.recorder.evaluation(0, metrics | {"examples": 7}, 1.0)
    (row,) = record.rows()
    assert (
        row["masked_lm_loss"] is row["mask_accuracy"] is row["next_sentence_loss"] is None
        and row["examples"] == 7
    )


def test_speed_is_that_since_the_last_line(record, capsys, monkeypatch):
    """8 examples of 100 / 8 tokens a step: in 2 seconds, then in 4, of which 3 were an
    evaluation's.
    """
    now = record.recorder._started
    monkeypatch.setattr("bert.training.metrics.time", SimpleNamespace(monotonic=lambda: now))
    for seconds, pause in ((2.0, 0.0), (4.0, 3.0)):
        now += seconds
        record.recorder.pause(pause)
        record(1.0)
    lines = capsys.readouterr().out.splitlines()
    assert "| 4.0 seq/s, 50 tokens/s, padding 61% |" in lines[0] and lines[0].endswith(
        "33 min 18 s left"
    )
    assert "| 8.0 seq/s, 100 tokens/s, padding 61% |" in lines[1] and lines[1].endswith(
        "24 min 57 s left"
    )


def test_progress_line_fits_the_terminal(record, capsys, monkeypatch):
    recorder = record.recorder
    monkeypatch.setattr(recorder, "_is_terminal", True)
    for columns, missing in ((80, ("lr", "samples", "grad norm", "seq/s")), (140, ("lr",))):
        monkeypatch.setenv("COLUMNS", str(columns))
        recorder._interval = 0
        record(1.0)
        line = capsys.readouterr().out.removeprefix("\r\033[K")
        assert len(line) < columns and line.startswith("step ") and line.endswith(" left")
        assert "| loss 2.5000 (mlm 2.0000, nsp 0.5000) |" in line
        assert not any(word in line for word in missing)
