"""What a run leaves to be seen: evaluation sums, metrics.jsonl, the progress line, the curves."""

import json
import os
import sys
import time

import torch
import torch.distributed as dist

from bert.files import atomic_writer
from bert.model import correct_counts, loss_sums, predict


@torch.no_grad()
def evaluate(model, loader, device):
    """Returns the evaluation metrics over all examples of all ranks: sums are pooled, then divided once.

    `model` is the bare module, not its data-parallel wrapper: ranks may have different numbers of batches.
    """
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    model.eval()
    for batch in loader:
        logits = predict(model, batch)
        counts = (batch["masked_lm_weights"].sum(), torch.tensor(len(batch["input_ids"]), device=device))
        sums += torch.stack([value.double() for value in (*correct_counts(logits, batch), *loss_sums(logits, batch), *counts)])
    model.train()
    dist.all_reduce(sums)
    masked_lm_right, next_sentence_right, masked_lm_loss, next_sentence_loss, predictions, examples = sums.tolist()
    return {
        "masked_lm_accuracy": masked_lm_right / predictions,
        "masked_lm_loss": masked_lm_loss / predictions,
        "next_sentence_accuracy": next_sentence_right / examples,
        "next_sentence_loss": next_sentence_loss / examples,
        "examples": int(examples),
    }


class MetricsLog:
    """Appends to `<output_dir>/metrics.jsonl`: a line per optimizer step, a line per evaluation."""

    def __init__(self, path):
        self._file = open(path, "a", buffering=1)

    def write(self, **values):
        self._file.write(json.dumps(values) + "\n")

    def close(self):
        self._file.close()


class Progress:
    """One line on the console: rewritten on a terminal, a new one every 10 seconds elsewhere."""

    def __init__(self, num_steps, samples_per_step):
        self.num_steps, self.samples_per_step = num_steps, samples_per_step
        self._is_terminal = sys.stdout.isatty()
        self._interval = 0.5 if self._is_terminal else 10.0  # seconds
        self._started = self._last = time.monotonic()
        self._paused = 0.0

    def is_due(self, step):
        return step == self.num_steps or time.monotonic() - self._last >= self._interval

    def show(self, step, loss, masked_lm_loss, next_sentence_loss, rate, gradient_norm):
        self._last = time.monotonic()
        speed = step / max(self._last - self._started - self._paused, 1e-9)  # steps per second
        left = (self.num_steps - step) / speed
        line = (
            f"step {step:,}/{self.num_steps:,} | {step * self.samples_per_step:,} samples | loss {loss:.4f} "
            f"(mlm {masked_lm_loss:.4f}, nsp {next_sentence_loss:.4f}) | lr {rate:.3e} | grad norm {gradient_norm:.2f} | "
            f"{speed * self.samples_per_step:,.1f} seq/s | {left // 60:.0f}:{left % 60:02.0f} left"
        )
        end = "\n" if step == self.num_steps or not self._is_terminal else ""
        print(f"\r\033[K{line}" if self._is_terminal else line, end=end, flush=True)

    def interject(self, line):
        """Prints a line of its own between the progress lines."""
        print(f"\r\033[K{line}" if self._is_terminal else line, flush=True)

    def exclude(self, seconds):
        """Leaves time that was not training out of the speed."""
        self._paused += seconds


def plot_curves(metrics_path, png_path):
    """Draws losses per step and accuracies per evaluation, from metrics.jsonl, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(metrics_path) as file:
        rows = [json.loads(line) for line in file]
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "masked_lm_accuracy" in row]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, label in (("mlm_loss", "masked LM, training"), ("nsp_loss", "next sentence, training")):
        left.plot([row["step"] for row in steps], [row[name] for row in steps], linewidth=0.8, label=label)
    left.plot(*_points(evaluations, "masked_lm_loss"), "o-", markersize=3, label="masked LM, evaluation")
    left.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    right.plot(*_points(evaluations, "masked_lm_accuracy"), "o-", markersize=3, label="masked LM")
    right.plot(*_points(evaluations, "next_sentence_accuracy"), "o-", markersize=3, label="next sentence")
    right.set(xlabel="step", ylabel="accuracy on the evaluation set", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    os.makedirs(os.path.dirname(os.path.abspath(png_path)), exist_ok=True)
    with atomic_writer(png_path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def _points(rows, name):
    return [row["step"] for row in rows], [row[name] for row in rows]
