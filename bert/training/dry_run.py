"""train.py --dry_run: what a run costs, in a table made from its flags and one file of examples."""

import argparse
import itertools
import os
from typing import NamedTuple

import numpy as np
from transformers import BertConfig

from bert.common.cli import three_digits
from bert.common.path_flags import list_folder_or_pattern
from bert.examples.example_file import open_examples
from bert.training import cost
from bert.training.cost import Layout
from bert.training.flag_checks import check_dry_run
from bert.training.flops import peak_flops, training_flops
from bert.training.model import load_config

MFU = 0.4  # assumed: docs/performance.md has what the published times of MLPerf's BERT come to
GPUS = ("A100", "H100")
MEMORY_SIZES = (24, 40, 80)  # GB of a GPU
_USABLE = 0.9  # of a GPU's memory; the rest for CUDA, NCCL and gaps between blocks
_SAMPLE_BATCHES = 16  # of 256 examples, at most


class Examples(NamedTuple):
    num_files: int
    in_first_file: int
    in_all_files: int  # by their sizes, if there are several
    seq_length: int
    mean_tokens: float  # without padding
    mean_predictions: float


def look_at_examples(where: str, vocab_size: int) -> Examples:
    """Returns the `Examples` in `where`, a folder, pattern or file, of which only the first file is
    opened. DataError if it is no file of examples.
    """
    paths = list_folder_or_pattern(where)
    file = open_examples(paths[0])
    batches = list(itertools.islice(file.batches(file.lengths, vocab_size), _SAMPLE_BATCHES))
    tokens = np.concatenate([batch["input_mask"].sum(1) for batch in batches])
    predictions = np.concatenate([batch["masked_lm_weights"].sum(1) for batch in batches])
    count, size = file.count(), sum(map(os.path.getsize, paths))
    return Examples(
        len(paths), count, round(count * size / os.path.getsize(paths[0])),
        file.lengths["input_ids"], float(tokens.mean()), float(predictions.mean()),
    )  # fmt: skip


def run(flags: argparse.Namespace) -> None:
    """Checks the flags and prints the table, on rank 0."""
    if int(os.environ.get("RANK", 0)) == 0:
        check_dry_run(flags)
        print("\n".join(describe(flags, load_config(flags.bert_config_file))))


def describe(flags: argparse.Namespace, config: BertConfig) -> list[str]:
    """Returns the lines that train.py --dry_run prints."""
    examples = look_at_examples(flags.tfrecord_train, config.vocab_size)
    return [
        *_run_lines(flags, config, examples),
        "",
        *_cost_lines(flags, config, examples),
        "",
        "Estimates from shapes and published peaks: nothing was measured, started or written.",
        "Memory is without some 2 GB for CUDA and NCCL. Hours are without evaluations and saving.",
        "The formulas and their sources: docs/training.md, What a run costs.",
    ]


def _run_lines(flags, config, examples):
    samples = flags.num_train_steps * flags.train_batch_size
    of_all = "; --tfrecord_train=<folder> counts all files" if examples.num_files == 1 else ""
    of_files = f"in {examples.num_files:,} file{'s' if examples.num_files > 1 else ''}"
    if examples.num_files > 1:
        of_files += f", by their sizes and the {examples.in_first_file:,} of the first"
    disk = cost.disk_bytes(
        config, flags.num_train_steps, flags.save_checkpoints_steps, flags.keep_checkpoint_max
    )
    start = flags.init_checkpoint or "random weights"
    earlier = ""
    if flags.target_accuracy is not None:
        earlier = f"; ends earlier at masked LM accuracy {flags.target_accuracy}"
    return [
        f"model        {cost.num_parameters(config):,} parameters, from {start}",
        f"steps        {flags.num_train_steps:,} x {flags.train_batch_size:,} examples = "
        f"{samples:,} samples{earlier}",
        f"examples     {examples.in_all_files:,} {of_files}",
        f"             {examples.seq_length} tokens each, {examples.mean_tokens:.1f} of them not "
        f"padding; {examples.mean_predictions:.1f} predictions",
        f"epochs       {samples / examples.in_all_files:,.2f} of these examples{of_all}",
        f"disk         {_gb(disk.total)} GB: {disk.num_checkpoints:,} checkpoints of "
        f"{_gb(disk.checkpoint)}, best/ and model/ of {_gb(disk.model)} each;",
        f"             {_gb(disk.checkpoint)} GB more while a checkpoint is written",
    ]


def _cost_lines(flags, config, examples):
    flops = [
        flags.num_train_steps * flags.train_batch_size * training_flops(config, *shape)
        for shape in (
            (examples.seq_length, examples.mean_predictions),
            (examples.mean_tokens, examples.mean_predictions),
        )
    ]
    precision = "bf16" if flags.precision == "auto" else flags.precision
    # Tensor parallelism needs a whole group of GPUs.
    counts = [n for n in (1, 8) if n % flags.tp_size == 0] or [flags.tp_size]
    layouts = [
        Layout(flags.plugin, precision, flags.tp_size, flags.gradient_checkpointing, number)
        for number in counts
    ]
    fits = f"smallest --steps_per_update in {', '.join(map(str, MEMORY_SIZES))} GB"
    lines = [
        _row("", "dense", "unpadded"),
        _row("TFLOPs in all", *(three_digits(number / 1e12) for number in flops)),
        f"GB per GPU, {flags.plugin}, {precision}",
        *(_memory_row(flags, config, examples, layout) for layout in layouts),
        f"   ({fits}, {'unpadded' if flags.unpad else 'dense'})",
    ]
    peaks = {gpu: peak for gpu in GPUS if (peak := peak_flops(gpu))}
    if precision == "fp32":
        return [*lines, "hours: not estimated for --precision=fp32"]
    return [
        *lines,
        f"hours, if the MFU is {MFU}",
        *(
            _row(
                f"  {number} x {gpu}",
                *(three_digits(cost.hours(each, number, peak, MFU)) for each in flops),
            )
            for gpu, peak in peaks.items()
            for number in counts
        ),
    ]


def _memory_row(flags, config, examples, layout):
    name = f"  {layout.num_gpus} GPU{'s' if layout.num_gpus > 1 else ''}"
    batch_size, parts = flags.train_batch_size, layout.shares * flags.steps_per_update
    if batch_size % parts:
        return f"{name}: --train_batch_size={batch_size} is not divisible by {parts}"
    micro_batch_size = batch_size // parts
    lengths = examples.seq_length, examples.mean_tokens
    dense, unpadded = (
        cost.state_bytes(config, layout)
        + cost.activation_bytes(
            config, layout, micro_batch_size * length, micro_batch_size * examples.mean_predictions
        )
        for length in lengths
    )
    example = lengths[flags.unpad], examples.mean_predictions
    smallest = [
        cost.smallest_steps_per_update(config, layout, batch_size, example, _USABLE * size * 1e9)
        for size in MEMORY_SIZES
    ]
    return _row(
        f"{name} x {micro_batch_size:,} examples", _gb(dense), _gb(unpadded),
        ", ".join("no" if number is None else f"{number:,}" for number in smallest),
    )  # fmt: skip


def _row(name, dense, unpadded, more=""):
    return f"{name:<27}{dense:>14}{unpadded:>14}   {more}".rstrip()


def _gb(size):
    return three_digits(size / 1e9)
