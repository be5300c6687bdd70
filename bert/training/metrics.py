"""What a run shows: evaluation over all ranks, metrics.jsonl, TensorBoard, the progress line, the
curves.
"""

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from bert.common.files import DataError, atomic_writer
from bert.common.progress import time_left
from bert.training.model import correct_counts, loss_sums, predict
from bert.training.tensorboard_log import TensorboardLog


@torch.no_grad()
def evaluate(model, loader, device, data_group=None):
    """Returns the evaluation metrics over all examples of all ranks of a group: sums are pooled,
    then divided once.

    `model` is the bare module, not its data-parallel wrapper: ranks may have different numbers of
    batches.
    """
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    model.eval()
    for batch in loader:
        num_examples = len(batch["input_ids"])
        if num_examples == 0:  # the last step of a rank for which no example is left
            continue
        logits = predict(model, batch)
        weights = batch["masked_lm_weights"].sum()
        counts = (weights, torch.full_like(weights, num_examples))
        sums += torch.stack(
            [
                value.double()
                for value in (*correct_counts(logits, batch), *loss_sums(logits, batch), *counts)
            ]
        )
    model.train()
    dist.all_reduce(sums, group=data_group)
    (
        masked_lm_right,
        next_sentence_right,
        masked_lm_loss,
        next_sentence_loss,
        predictions,
        examples,
    ) = sums.tolist()
    return {
        "masked_lm_accuracy": masked_lm_right / predictions,
        "masked_lm_loss": masked_lm_loss / predictions,
        "next_sentence_accuracy": next_sentence_right / examples,
        "next_sentence_loss": next_sentence_loss / examples,
        "examples": int(examples),
    }


MAX_SKIPPED_IN_A_ROW = 5
MIN_LOSS_SCALE = 1.0  # below it, not the scale is to blame for an overflow
_NAMED_EXAMPLES = 3  # on the console, of an update that was left out


@dataclass
class _Step:
    """A step whose results are still on their device: `values` are float32 [6], in the order of
    VALUES.
    """

    number: int
    learning_rate: float
    positions: tuple  # the loader's, before and behind its examples
    values: torch.Tensor

    VALUES: ClassVar = ("mlm_loss", "nsp_loss", "mlm_accuracy", "grad_norm", "tokens", "loss_scale")


class Recorder:
    """Rank 0's metrics.jsonl, TensorBoard events and console; the other ranks' recorders do
    nothing.

    The console gets one progress line: rewritten on a terminal, a new one every 10 seconds
    elsewhere. Losses stay on their device until a line is due, so that no step waits for the GPU.
    """

    def __init__(
        self, output_dir, num_steps, samples_per_step, seq_length, utilisation, records_between,
        expected_curve=None, first_step=1, kept_bytes=0,
    ):  # fmt: skip
        """A resumed run gives its first step, and how much of metrics.jsonl belongs to the
        steps before it.

        utilisation: function of (sequences per second, mean tokens of a sequence) -> MFU, or None
        where it is not known.
        records_between: function of two positions of the loader -> [(file name, number of the
        record in it)].
        expected_curve: an ExpectedCurve with which evaluations are compared, or None.
        """
        self.is_main = dist.get_rank() == 0
        self.num_steps, self.samples_per_step, self.seq_length = (
            num_steps,
            samples_per_step,
            seq_length,
        )
        self._utilisation, self._records_between, self._expected_curve = (
            utilisation,
            records_between,
            expected_curve,
        )
        self._steps_before = self._last_line_step = first_step - 1
        self._pending = []
        self._skipped_in_a_row = 0
        self._last_accuracy = None  # on the evaluation set
        self._is_terminal = sys.stdout.isatty()
        self._interval = 0.5 if self._is_terminal else 10.0  # seconds
        self._started = self._last_line_at = time.monotonic()
        self._pauses = self._pauses_at_last_line = self._tokens_since_last_line = (
            0.0  # the first two in seconds
        )
        if self.is_main:
            self._log = _open_at(os.path.join(output_dir, "metrics.jsonl"), kept_bytes)
            is_new = first_step == 1
            self._tensorboard = TensorboardLog(
                os.path.join(output_dir, "tensorboard"), 0 if is_new else first_step
            )

    def bytes_written(self):
        """Returns the size of metrics.jsonl (0 on other ranks than 0), after all steps so far are
        in it.
        """
        if not self.is_main:
            return 0
        self._flush()
        os.fsync(self._log.fileno())
        return os.fstat(self._log.fileno()).st_size

    def say(self, text, end="\n"):
        if self.is_main:
            print(f"\r\033[K{text}" if self._is_terminal else text, end=end, flush=True)

    def step(self, step, results, gradient_norm, learning_rate, num_tokens, loss_scale, start, end):
        """Takes float32 tensors: both losses and the accuracy [3], the gradient norm before
        clipping [], real tokens [].

        loss_scale: that of the next step, float32 [], or None. start, end: the loader's positions
        before and behind the step.
        """
        if not self.is_main:
            return
        loss_scale = torch.zeros_like(gradient_norm) if loss_scale is None else loss_scale
        values = torch.cat((results, torch.stack((gradient_norm, num_tokens, loss_scale))))
        self._pending.append(_Step(step, learning_rate, (start, end), values))
        if step == self.num_steps or time.monotonic() - self._last_line_at >= self._interval:
            self._flush()

    def evaluation(self, step, metrics, seconds):
        if not self.is_main:
            return
        self.pause(seconds)
        self._flush()
        self._write(step=step, **_finite(metrics))
        self._tensorboard.evaluation(step, _finite(metrics))
        self._last_accuracy = metrics["masked_lm_accuracy"]
        self.say(
            f"step {step:,} | evaluation: masked_lm_accuracy {metrics['masked_lm_accuracy']:.4f}, "
            f"loss {metrics['masked_lm_loss']:.4f} | "
            f"next_sentence_accuracy {metrics['next_sentence_accuracy']:.4f} | "
            f"{metrics['examples']:,} examples, {seconds:.1f} s"
        )
        samples = step * self.samples_per_step
        warning = self._expected_curve and self._expected_curve.warning(
            samples, metrics["masked_lm_accuracy"]
        )
        if warning:
            self.say(f"warning: {warning}")

    def pause(self, seconds):
        """Time that is not spent on training steps, and does not count for their speed."""
        self._pauses += seconds

    def _write(self, **values):
        self._log.write(json.dumps(values) + "\n")

    def _flush(self):
        """Writes the steps since the last call and shows the newest; DataError if too many in a row
        were left out.
        """
        if not self._pending:
            return
        all_values = torch.stack([step.values for step in self._pending]).tolist()
        pending, self._pending = self._pending, []
        for step, values in zip(pending, all_values):
            values = dict(zip(_Step.VALUES, values))
            self._tokens_since_last_line += values["tokens"]
            self._write_step(step, values)
        self._tensorboard.flush()
        self._show(step, values)

    def _write_step(self, step, values):
        loss = values["mlm_loss"] + values["nsp_loss"]
        row = {"step": step.number, "loss": loss, "learning_rate": step.learning_rate}
        row |= {
            name: values[name] for name in ("mlm_loss", "nsp_loss", "mlm_accuracy", "grad_norm")
        }
        if math.isfinite(values["grad_norm"]):
            self._skipped_in_a_row = 0
            self._write_row(row)
        elif math.isfinite(loss) and values["loss_scale"] >= MIN_LOSS_SCALE:
            # Usual in fp16: the scale is halved until nothing overflows.
            self._write_row(_finite(row) | {"skipped": True})
            self.say(
                f"step {step.number}: gradients too large for fp16, the update is left out and the "
                f"loss scale lowered to {values['loss_scale']:g}"
            )
        else:
            examples = self._records_between(*step.positions)
            self._write_row(_finite(row) | {"skipped": True}, examples=examples)
            self._note_skipped(step, values, examples)

    def _write_row(self, row, **more):
        """more: what is not to be plotted."""
        self._write(**row, **more)
        self._tensorboard.step(
            row["step"], {name: value for name, value in row.items() if name != "step"}
        )

    def _note_skipped(self, step, values, examples):
        """Warns of an update that was left out; DataError if there is no end to them."""
        named = ", ".join(
            f"{file} --record={number}" for file, number in examples[:_NAMED_EXAMPLES]
        )
        others = len(examples) - _NAMED_EXAMPLES
        what = (
            f"step {step.number}: masked LM loss {values['mlm_loss']}, next-sentence loss "
            f"{values['nsp_loss']}, gradient norm {values['grad_norm']}, rate "
            f"{step.learning_rate:.3e}, examples (see inspect_tfrecord.py) "
            f"{named}{f' and {others} more, named in metrics.jsonl' if others > 0 else ''}"
        )
        advice = (
            "training has diverged; lower --learning_rate, lengthen --num_warmup_steps, "
            "or try --precision=fp32"
        )
        if 0 < values["loss_scale"] < MIN_LOSS_SCALE:
            raise DataError(f"{what}; the loss scale has fallen under {MIN_LOSS_SCALE:g}: {advice}")
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DataError(
                f"{what}; {self._skipped_in_a_row} updates in a row were not finite: {advice}; "
                f"the weights are those of step {step.number - self._skipped_in_a_row}"
            )
        self.say(f"warning: {what}: the update is not finite and left out")

    def _show(self, step, values):
        """The progress line: speeds since the line before, time left by the mean speed since the
        start.
        """
        number, now = step.number, time.monotonic()
        seconds = max(now - self._last_line_at - (self._pauses - self._pauses_at_last_line), 1e-9)
        sequences, tokens = (
            (number - self._last_line_step) * self.samples_per_step,
            self._tokens_since_last_line,
        )
        utilisation = self._utilisation(sequences / seconds, tokens / sequences)
        left = time_left(
            number - self._steps_before,
            self.num_steps - self._steps_before,
            now - self._started - self._pauses,
        )
        self._last_line_at, self._last_line_step, self._pauses_at_last_line = (
            now,
            number,
            self._pauses,
        )
        self._tokens_since_last_line = 0.0
        evaluated = "" if self._last_accuracy is None else f" (evaluated {self._last_accuracy:.4f})"
        self.say(
            (
                f"step {number:,}/{self.num_steps:,} | "
                f"{number * self.samples_per_step:,} samples | "
                f"loss {values['mlm_loss'] + values['nsp_loss']:.4f} "
                f"(mlm {values['mlm_loss']:.4f}, nsp {values['nsp_loss']:.4f}) | "
                f"accuracy {values['mlm_accuracy']:.4f}{evaluated} | "
                f"lr {step.learning_rate:.3e} | grad norm {values['grad_norm']:.2f} | "
                f"{sequences / seconds:,.1f} seq/s, {tokens / seconds:,.0f} tokens/s, "
                f"padding {1 - tokens / sequences / self.seq_length:.0%} | "
                f"{'' if utilisation is None else f'MFU {utilisation:.1%} | '}{left}"
            ),
            end="" if self._is_terminal and number < self.num_steps else "\n",
        )


def _finite(values):
    """The same dict with None for what is not finite: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _open_at(path, kept_bytes):
    """Opens a text file to append after its first `kept_bytes`; DataError if it has fewer."""
    file = open(path, "a", buffering=1)
    size = os.fstat(file.fileno()).st_size
    if size < kept_bytes:
        raise DataError(
            f"{path}: {size:,} bytes, expected at least the {kept_bytes:,} that belong to the "
            "checkpoint; put the whole file back, or go on in another --output_dir with "
            "--init_checkpoint=<the checkpoint>"
        )
    file.truncate(kept_bytes)
    return file


def plot_curves(metrics_path, png_path):
    """Draws losses per step and accuracies per evaluation, from metrics.jsonl, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(metrics_path) as file:
        rows = [json.loads(line) for line in file]
    steps = [row for row in rows if row.get("loss") is not None]
    evaluations = [row for row in rows if "masked_lm_accuracy" in row]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, label in (
        ("mlm_loss", "masked LM, training"),
        ("nsp_loss", "next sentence, training"),
    ):
        left.plot(
            [row["step"] for row in steps], [row[name] for row in steps], linewidth=0.8, label=label
        )
    left.plot(
        *_points(evaluations, "masked_lm_loss"), "o-", markersize=3, label="masked LM, evaluation"
    )
    left.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    right.plot(*_points(evaluations, "masked_lm_accuracy"), "o-", markersize=3, label="masked LM")
    right.plot(
        *_points(evaluations, "next_sentence_accuracy"), "o-", markersize=3, label="next sentence"
    )
    right.set(xlabel="step", ylabel="accuracy on the evaluation set", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_writer(png_path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def _points(rows, name):
    return [row["step"] for row in rows], [row[name] for row in rows]
