"""Evaluation over all ranks, and the records of a run: metrics.jsonl, console, curves."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F

from bert.common.files import DataError, atomic_writer
from bert.common.progress import fitted, time_left
from bert.training.expected_curve import ExpectedCurve
from bert.training.model import Batch, correct_counts, label_counts, loss_sums, predict
from bert.training.tensorboard_log import TensorboardLog

Position = tuple[int, int]  # of the loader: epoch, records of it


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    mask_id: int,
    data_group: dist.ProcessGroup | None = None,
    num_rows: int = 0,
) -> dict[str, float]:
    """Returns the metrics over all examples of a group of ranks: sums of all, divided once.

    masked_lm_accuracy is MLPerf's, over all predictions. A tenth of them show the token that is to
    be predicted, which is easy to learn; so mask_accuracy counts only positions that show [MASK].
    The baselines are what the same answer everywhere would give: the most frequent token of the
    positions that show [MASK], the more frequent label of next sentence.

    model: the module itself, not its data-parallel wrapper, because ranks may have different
    numbers of batches. mask_id: of [MASK]. num_rows: smaller batches are padded to so many
    examples, for a model that was compiled for these and computes padding; 0: not.
    """
    sums = torch.zeros(7, dtype=torch.float64, device=device)
    tokens = torch.zeros(model.config.vocab_size, dtype=torch.float64, device=device)
    next_labels = torch.zeros(2, dtype=torch.float64, device=device)
    model.eval()
    for batch in loader:
        num_examples = len(batch["input_ids"])
        if num_examples == 0:  # the last step of a rank for which no example is left
            continue
        tokens += label_counts(batch, mask_id, len(tokens))
        is_random = batch["next_sentence_labels"].sum()
        next_labels += torch.stack((num_examples - is_random, is_random))
        if num_examples < num_rows:
            batch = _pad_examples(batch, num_rows - num_examples)
        logits = predict(model, batch)
        weights = batch["masked_lm_weights"].sum()
        counts = (weights, torch.full_like(weights, num_examples))
        values = (*correct_counts(logits, batch, mask_id), *loss_sums(logits, batch), *counts)
        sums += torch.stack([value.double() for value in values])
    model.train()
    totals = torch.cat((sums, next_labels, tokens))
    dist.all_reduce(totals, group=data_group)
    sums, next_labels, tokens = totals.split([len(sums), len(next_labels), len(tokens)])
    masked_lm_right, mask_right, next_right, masked_lm_loss, next_loss, predictions, examples = (
        sums.tolist()
    )
    masks = tokens.sum().item()  # positions that show [MASK]
    return {
        "masked_lm_accuracy": masked_lm_right / predictions,
        "masked_lm_loss": masked_lm_loss / predictions,
        "mask_accuracy": mask_right / masks if masks else math.nan,
        "mask_baseline": tokens.max().item() / masks if masks else math.nan,
        "next_sentence_accuracy": next_right / examples,
        "next_sentence_baseline": next_labels.max().item() / examples,
        "next_sentence_loss": next_loss / examples,
        "examples": int(examples),
    }


def _pad_examples(batch, count):
    """Adds examples that no metric counts: of weight 0, and with a label that torch leaves out."""
    features = {name: column for name, column in batch.items() if column.dim() == 2}
    padded = {name: F.pad(column, (0, 0, 0, count)) for name, column in features.items()}
    padded["next_sentence_labels"][-count:] = -100  # F.cross_entropy's `ignore_index`
    return batch | padded


MAX_SKIPPED_IN_A_ROW = 5
MIN_LOSS_SCALE = 1.0  # below it, the scale cannot be the cause of an overflow
_SHOWN_EXAMPLES = 3  # on the console, of a skipped update


@dataclass
class _Step:
    """A step whose results are still on their device."""

    number: int
    learning_rate: float
    positions: tuple[Position, Position]  # before and after its examples
    values: torch.Tensor  # float32 [6], in the order of VALUES

    VALUES: ClassVar = ("mlm_loss", "nsp_loss", "mlm_accuracy", "grad_norm", "tokens", "loss_scale")


class Recorder:
    """Rank 0's metrics.jsonl, TensorBoard events and console; on other ranks it does nothing.

    The console gets one progress line: rewritten on a terminal, a new one every 10 seconds
    elsewhere. Losses stay on their device until a line is due, so that no step waits for the GPU.
    """

    def __init__(
        self,
        output_dir: str,
        num_steps: int,
        samples_per_step: int,
        seq_length: int,
        utilisation: Callable[[float, float], float | None],
        records_between: Callable[[Position, Position], list[tuple[str, int]]],
        expected_curve: ExpectedCurve | None = None,
        first_step: int = 1,
        kept_bytes: int = 0,
    ):
        """utilisation: (sequences per second, mean tokens of each) -> MFU, or None if unknown.
        records_between: two positions of the loader -> [(file name, number of the record in it)].
        expected_curve: evaluations are compared with it. first_step, kept_bytes: of a resumed run;
        so many bytes of metrics.jsonl belong to the steps before its first one.
        """
        self.is_main = dist.get_rank() == 0
        self.num_steps, self.samples_per_step = num_steps, samples_per_step
        self.seq_length = seq_length
        self._utilisation, self._records_between = utilisation, records_between
        self._expected_curve = expected_curve
        self._steps_before = self._last_line_step = first_step - 1
        self._pending: list[_Step] = []
        self._skipped_in_a_row = 0
        self._last_accuracy: float | None = None  # on the evaluation set
        self._is_terminal = sys.stdout.isatty()
        self._interval = 0.5 if self._is_terminal else 10.0  # seconds
        self._started = self._last_line_at = time.monotonic()
        self._pauses = self._pauses_at_last_line = 0.0  # seconds
        self._tokens_since_last_line = 0.0
        if self.is_main:
            self._log = _open_at(os.path.join(output_dir, "metrics.jsonl"), kept_bytes)
            is_new = first_step == 1
            self._tensorboard = TensorboardLog(
                os.path.join(output_dir, "tensorboard"), 0 if is_new else first_step
            )

    def bytes_written(self) -> int:
        """Writes all steps so far; returns the size of metrics.jsonl (0 on ranks other than 0)."""
        if not self.is_main:
            return 0
        self._flush()
        return os.fstat(self._log.fileno()).st_size

    def sync(self) -> None:
        """Brings metrics.jsonl to the disk, on rank 0."""
        os.fsync(self._log.fileno())

    def say(self, text: str, end: str = "\n") -> None:
        if self.is_main:
            print(f"\r\033[K{text}" if self._is_terminal else text, end=end, flush=True)

    def step(
        self,
        step: int,
        results: torch.Tensor,
        gradient_norm: torch.Tensor,
        learning_rate: float,
        num_tokens: torch.Tensor,
        loss_scale: torch.Tensor | None,
        start: Position,
        end: Position,
    ) -> None:
        """Takes float32 tensors: both losses and the accuracy [3], the gradient norm before
        clipping [], tokens that are not padding [], the loss scale of the next step [].

        start, end: the loader's positions before and after the step.
        """
        if not self.is_main:
            return
        loss_scale = torch.zeros_like(gradient_norm) if loss_scale is None else loss_scale
        values = torch.cat((results, torch.stack((gradient_norm, num_tokens, loss_scale))))
        self._pending.append(_Step(step, learning_rate, (start, end), values))
        if step == self.num_steps or time.monotonic() - self._last_line_at >= self._interval:
            self._flush()

    def evaluation(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Takes the result of `evaluate` after a step, and its duration."""
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
            f"at [MASK] {metrics['mask_accuracy']:.4f} "
            f"(always one token: {metrics['mask_baseline']:.4f}) | "
            f"next_sentence_accuracy {metrics['next_sentence_accuracy']:.4f} "
            f"(always one answer: {metrics['next_sentence_baseline']:.4f}) | "
            f"{metrics['examples']:,} examples, {seconds:.1f} s"
        )
        if self._expected_curve is not None:
            samples, accuracy = step * self.samples_per_step, metrics["masked_lm_accuracy"]
            if warning := self._expected_curve.warning(samples, accuracy):
                self.say(f"warning: {warning}")

    def pause(self, seconds: float) -> None:
        """Subtracts time that was not spent on training steps from the time for their speed."""
        self._pauses += seconds

    def _write(self, **values):
        self._log.write(json.dumps(values) + "\n")

    def _flush(self):
        """Writes all pending steps and shows the newest; DataError if too many were skipped."""
        if not self._pending:
            return
        rows = torch.stack([step.values for step in self._pending]).tolist()
        pending, self._pending = self._pending, []
        for step, row in zip(pending, rows):
            values = dict(zip(_Step.VALUES, row))
            self._tokens_since_last_line += values["tokens"]
            self._write_step(step, values)
        self._tensorboard.flush()
        self._show(step, values)

    def _write_step(self, step, values):
        loss = values["mlm_loss"] + values["nsp_loss"]
        row = {"step": step.number, "loss": loss, "learning_rate": step.learning_rate}
        row |= {name: values[name] for name in _Step.VALUES[:4]}
        if math.isfinite(values["grad_norm"]):
            self._skipped_in_a_row = 0
            self._write_row(row)
        elif math.isfinite(loss) and values["loss_scale"] >= MIN_LOSS_SCALE:
            # Usual in fp16: the scale is halved until nothing overflows.
            self._write_row(_finite(row) | {"skipped": True})
            self.say(
                f"step {step.number}: gradients too large for fp16, the update is skipped and the "
                f"loss scale lowered to {values['loss_scale']:g}"
            )
        else:
            examples = self._records_between(*step.positions)
            self._write_row(_finite(row) | {"skipped": True}, examples=examples)
            self._report_skipped(step, values, examples)

    def _write_row(self, row, **not_plotted):
        self._write(**row, **not_plotted)
        self._tensorboard.step(
            row["step"], {name: value for name, value in row.items() if name != "step"}
        )

    def _report_skipped(self, step, values, examples):
        """Warns of a skipped update; DataError if there are too many in a row."""
        shown = ", ".join(
            f"{file} --record={number}" for file, number in examples[:_SHOWN_EXAMPLES]
        )
        others = len(examples) - _SHOWN_EXAMPLES
        what = (
            f"step {step.number}: masked LM loss {values['mlm_loss']}, next-sentence loss "
            f"{values['nsp_loss']}, gradient norm {values['grad_norm']}, rate "
            f"{step.learning_rate:.3e}, examples (see inspect_tfrecord.py) "
            f"{shown}{f' and {others} more, listed in metrics.jsonl' if others > 0 else ''}"
        )
        advice = (
            "training has diverged; lower --learning_rate, lengthen --num_warmup_steps, "
            "or try --precision=fp32"
        )
        if 0 < values["loss_scale"] < MIN_LOSS_SCALE:
            raise DataError(f"{what}; the loss scale has fallen below {MIN_LOSS_SCALE:g}: {advice}")
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DataError(
                f"{what}; {self._skipped_in_a_row} updates in a row were not finite: {advice}; "
                f"the weights are those of step {step.number - self._skipped_in_a_row}"
            )
        self.say(f"warning: {what}: the update is not finite and is skipped")

    def _show(self, step, values):
        """Shows progress: speed since the last line, time left by the mean speed of all steps."""
        number, now = step.number, time.monotonic()
        seconds = max(now - self._last_line_at - (self._pauses - self._pauses_at_last_line), 1e-9)
        sequences = (number - self._last_line_step) * self.samples_per_step
        tokens = self._tokens_since_last_line
        utilisation = self._utilisation(sequences / seconds, tokens / sequences)
        left = time_left(
            number - self._steps_before,
            self.num_steps - self._steps_before,
            now - self._started - self._pauses,
        )
        self._last_line_at, self._last_line_step = now, number
        self._pauses_at_last_line, self._tokens_since_last_line = self._pauses, 0.0
        evaluated = "" if self._last_accuracy is None else f" (evaluated {self._last_accuracy:.4f})"
        parts = [  # in a narrow terminal the highest numbers are left out
            (0, f"step {number:,}/{self.num_steps:,}"),
            (6, f"{number * self.samples_per_step:,} samples"),
            (
                1,
                f"loss {values['mlm_loss'] + values['nsp_loss']:.4f} "
                f"(mlm {values['mlm_loss']:.4f}, nsp {values['nsp_loss']:.4f})",
            ),
            (3, f"accuracy {values['mlm_accuracy']:.4f}{evaluated}"),
            (7, f"lr {step.learning_rate:.3e}"),
            (5, f"grad norm {values['grad_norm']:.2f}"),
            (
                4,
                f"{sequences / seconds:,.1f} seq/s, {tokens / seconds:,.0f} tokens/s, "
                f"padding {1 - tokens / sequences / self.seq_length:.0%}",
            ),
            *([] if utilisation is None else [(8, f"MFU {utilisation:.1%}")]),
            (2, left),
        ]
        is_rewritten = self._is_terminal and number < self.num_steps
        columns = shutil.get_terminal_size().columns - 1 if is_rewritten else sys.maxsize
        self.say(fitted(parts, columns), end="" if is_rewritten else "\n")


def _finite(values: dict[str, float]) -> dict[str, Any]:
    """Returns the dict with None for values that are not finite: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _open_at(path, kept_bytes):
    """Opens a text file to append after its first `kept_bytes`; DataError if it has fewer."""
    file = open(path, "a", buffering=1)
    size = os.fstat(file.fileno()).st_size
    if size < kept_bytes:
        raise DataError(
            f"{path}: {size:,} bytes, expected at least the {kept_bytes:,} that belong to the "
            "checkpoint; put the whole file back, or continue in another --output_dir with "
            "--init_checkpoint=<the checkpoint>"
        )
    file.truncate(kept_bytes)
    return file


def read_metrics(path: str, last_step: float = math.inf) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl up to a step, also while later ones are being written; []
    if there is no such file. DataError for a line that is not JSON.
    """
    if not os.path.exists(path):
        return []
    rows = []
    with open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}: line {number} is not JSON: {error}") from None
            if row["step"] > last_step:
                break
            rows.append(row)
    return rows


def plot_curves(rows: list[dict[str, Any]], png_path: str) -> None:
    """Draws losses per step and accuracies per evaluation, rows of metrics.jsonl, into a PNG."""
    from matplotlib.figure import Figure

    steps = [row for row in rows if row.get("loss") is not None]
    evaluations = [row for row in rows if "masked_lm_accuracy" in row]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)

    def draw(axes, rows, name, label, *style, **options):
        x, y = [row["step"] for row in rows], [row.get(name) for row in rows]
        axes.plot(x, y, *style, label=label, **options)

    draw(left, steps, "mlm_loss", "masked LM, training", linewidth=0.8)
    draw(left, steps, "nsp_loss", "next sentence, training", linewidth=0.8)
    draw(left, evaluations, "masked_lm_loss", "masked LM, evaluation", "o-", markersize=3)
    draw(right, evaluations, "masked_lm_accuracy", "masked LM", "o-", markersize=3)
    draw(right, evaluations, "mask_accuracy", "masked LM at [MASK]", "o-", markersize=3)
    draw(right, evaluations, "next_sentence_accuracy", "next sentence", "o-", markersize=3)
    left.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    right.set(xlabel="step", ylabel="accuracy on the evaluation set", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_writer(png_path) as picture:
        figure.savefig(picture, format="png", dpi=120)
