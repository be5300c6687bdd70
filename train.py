#!/usr/bin/env python3
"""BERT pretraining with ColossalAI: masked LM and next-sentence prediction on MLPerf's examples.

torchrun --nproc_per_node=8 train.py --bert_config_file=configs/bert_large.json \\
    --output_dir=runs/large --tfrecord_train=tfrecord --idx_train=idx/train --tfrecord_eval=eval \\
    --idx_eval=idx/eval --optimizer=adamw --train_batch_size=256 --learning_rate=1e-4 \\
    --num_warmup_steps=10000 --num_train_steps=1000000

Writes <output_dir>/metrics.jsonl (a line per step and per evaluation), tensorboard/, mlperf.log,
checkpoints/, curves.png, and at the end model/, which Hugging Face's
BertForPreTraining.from_pretrained loads; best/ is the model of the best evaluation. One process per
GPU; without CUDA it trains on the CPU over gloo. The same command again resumes from the newest
checkpoint, to the same losses. @configs/recipes/mlperf_256.args among the flags reads flags from
that file.
"""

import argparse
import gc
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

from bert.common import quiet_imports  # noqa: F401  before the frameworks

# isort: split
import torch
import torch.distributed as dist
from transformers import BertConfig

from bert.common import cli
from bert.common.files import DataError
from bert.training import checkpoint
from bert.training.distributed import StopRequest
from bert.training.flag_checks import check
from bert.training.launch import join_processes, lock_output_dir, readable_errors
from bert.training.model import (
    Batch,
    count_correct_or_tied,
    load_config,
    load_model,
    load_tokenizer,
    loss_sums,
    predict,
    save_model,
)
from bert.training.model_card import write_card
from bert.training.optimization import learning_rate
from bert.training.plugins import DTYPES, PLUGINS, DataParallel
from bert.training.run import Run

VOCAB_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vocab.txt")


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    model = parser.add_argument_group("model and output")
    add = model.add_argument
    add(
        "--bert_config_file",
        required=True,
        help="configs/bert_large.json or another of MLPerf's form",
    )
    add(
        "--init_checkpoint",
        help=(
            "weights to start from: a TensorFlow checkpoint such as MLPerf's model.ckpt-28252, or "
            "a Hugging Face folder such as a run's model/; leave out for random weights"
        ),
    )
    add(
        "--vocab_file",
        default=VOCAB_FILE,
        help="vocabulary of the examples, saved with the model (default: this script's vocab.txt)",
    )
    cli.add_boolean_flag(model, "do_lower_case", True, "False for a cased vocabulary")
    add(
        "--output_dir",
        required=True,
        help="folder of this run; the same command again resumes it",
    )
    data = parser.add_argument_group("data: folders, glob patterns or files")
    add = data.add_argument
    add("--tfrecord_train", required=True, help="training TFRecords, or instance files")
    add(
        "--idx_train",
        help=(
            "indexes of TFRecords; in a folder, missing ones are created "
            "(default: <output_dir>/idx/train)"
        ),
    )
    add("--tfrecord_eval", required=True, help="evaluation TFRecords, or instance files")
    add("--idx_eval", help="their indexes, as --idx_train (default: <output_dir>/idx/eval)")
    cli.add_boolean_flag(data, "shuffle", True, "False: training examples in file order")
    add(
        "--max_seq_length",
        type=int,
        help="refuse examples of another length (default: that of the first example)",
    )
    add(
        "--max_predictions_per_seq",
        type=int,
        help="refuse examples with another number of predictions (default: as the first example)",
    )
    add(
        "--num_threads",
        type=int,
        default=4,
        help="loader threads per process (default: %(default)s)",
    )
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--train_batch_size", type=int, required=True, help="examples per step over all processes")
    add(
        "--steps_per_update",
        type=int,
        default=1,
        help="gradient accumulation; 1: none (default: %(default)s)",
    )
    add("--num_train_steps", type=int, required=True, help="optimizer steps; 0: only evaluate")
    add(
        "--num_warmup_steps",
        type=int,
        default=0,
        help="steps of linear warm-up; 0: none (default: %(default)s)",
    )
    add(
        "--start_warmup_step",
        type=int,
        default=0,
        help="step at which warm-up begins, 0 or less (default: %(default)s)",
    )
    add("--learning_rate", type=float, required=True, help="peak rate")
    add(
        "--poly_power",
        type=float,
        default=1.0,
        help="power of the decay to 0 (default: %(default)s, linear)",
    )
    add("--optimizer", choices=("lamb", "adamw"), default="lamb", help="(default: %(default)s)")
    cli.add_boolean_flag(
        training, "adam_bias_correction", False, "for --optimizer=adamw; MLPerf's has none"
    )
    add(
        "--lamb_beta_1",
        type=float,
        default=0.9,
        help="first-moment decay of either optimizer (default: %(default)s)",
    )
    add(
        "--lamb_beta_2",
        type=float,
        default=0.999,
        help="second-moment decay (default: %(default)s)",
    )
    add(
        "--lamb_weight_decay_rate",
        type=float,
        default=0.01,
        help="weight decay; 0: none (default: %(default)s)",
    )
    add(
        "--log_epsilon",
        type=float,
        default=-6.0,
        help="epsilon of the optimizer is 10 to this power (default: %(default)s)",
    )
    add(
        "--max_grad_norm",
        type=float,
        default=1.0,
        help="clip the global gradient norm; 0: no clipping (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=12345,
        help="of weights, dropout and shuffling (default: %(default)s)",
    )
    machine = parser.add_argument_group("machine")
    add = machine.add_argument
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: CUDA if there is any (default: %(default)s)",
    )
    add(
        "--precision",
        choices=("auto", *DTYPES),
        default="auto",
        help=(
            "auto: bf16 on CUDA, fp32 on the CPU; ddp keeps float32 weights, the other plugins "
            "weights of this precision and float32 masters"
        ),
    )
    add(
        "--plugin",
        choices=PLUGINS,
        default="ddp",
        help=(
            "ddp: data parallelism; zero1: with the optimizer's state distributed; "
            "hybrid: with layers distributed over --tp_size processes (default: %(default)s)"
        ),
    )
    add(
        "--tp_size",
        type=int,
        default=1,
        help="processes over which a layer is distributed; 1: none (default: %(default)s)",
    )
    cli.add_boolean_flag(
        machine,
        "unpad",
        True,
        "False: compute padding too; same losses except for rounding and dropout",
    )
    cli.add_boolean_flag(
        machine,
        "balance",
        False,
        "of each batch give every process about the same number of tokens, so that none waits for "
        "another; needs instance files; same losses except for rounding and dropout",
    )
    cli.add_boolean_flag(machine, "compile", False, "torch.compile the layers")
    cli.add_boolean_flag(
        machine,
        "gradient_checkpointing",
        False,
        "keep no activations inside layers: less memory, a third slower",
    )
    add(
        "--collective_timeout",
        type=float,
        default=1800,
        help="seconds after which a rank stops waiting for the others (default: %(default)s)",
    )
    checkpoints = parser.add_argument_group("checkpoints")
    add = checkpoints.add_argument
    add(
        "--save_checkpoints_steps",
        type=int,
        default=1000,
        help="steps between checkpoints; 0: only at the end (default: %(default)s)",
    )
    add(
        "--keep_checkpoint_max",
        type=int,
        default=3,
        help="newest checkpoints to keep; 0: all (default: %(default)s)",
    )
    cli.add_boolean_flag(
        checkpoints,
        "export",
        False,
        "only write export/ from the newest checkpoint",
    )
    evaluation = parser.add_argument_group("evaluation")
    add = evaluation.add_argument
    add(
        "--eval_batch_size",
        type=int,
        default=32,
        help="examples per evaluation batch of a process (default: %(default)s)",
    )
    add(
        "--eval_every_samples",
        type=int,
        help="training examples between evaluations (default: MLPerf's formula)",
    )
    cli.add_boolean_flag(evaluation, "eval_at_start", False, "evaluate before the first step too")
    add(
        "--expected_curve",
        help="warn if accuracy leaves this curve, such as configs/curves/mosaicml_448_adamw.csv",
    )
    add(
        "--target_accuracy",
        type=float,
        help="stop at this masked LM accuracy, such as MLPerf's 0.720 (default: never)",
    )
    return parser.parse_args(argv)


def endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader


def denominators(batches: list[Batch], data_group: dist.ProcessGroup | None) -> torch.Tensor:
    """Returns float32 [2]: sum of masked LM weights plus 1e-5, and number of examples, of one
    update over all ranks.

    Divided by these sums, a loss does not depend on the number of ranks and micro-batches.
    """
    weights = torch.stack([batch["masked_lm_weights"].sum() for batch in batches]).sum()
    num_examples = sum(len(batch["input_ids"]) for batch in batches)
    sums = torch.stack([weights, torch.full_like(weights, num_examples)])
    dist.all_reduce(sums, group=data_group)
    sums[0] += 1e-5
    return sums


def count_tokens(batches: list[Batch], data_group: dist.ProcessGroup | None) -> torch.Tensor:
    """Returns the tokens of one update without padding, over all ranks, float32 []."""
    tokens = torch.stack([batch["input_mask"].sum() for batch in batches]).sum().float()
    dist.all_reduce(tokens, group=data_group)
    return tokens


def accumulate_gradients(parallel: DataParallel, batches: list[Batch]) -> torch.Tensor:
    """Forward and backward over the micro-batches of one update.

    Returns float32 [3], over all ranks: masked LM loss, next-sentence loss, masked LM accuracy.
    """
    divisors = denominators(batches, parallel.data_group)
    totals = torch.zeros(3, device=divisors.device)
    for number, batch in enumerate(batches, start=1):
        is_last = number == len(batches)
        with nullcontext() if is_last else parallel.no_sync():
            with parallel.autocast():
                logits = predict(parallel.model, batch)
            losses = torch.stack(loss_sums(logits, batch)) / divisors
            # The plugin averages gradients over ranks, but these losses are to be added.
            parallel.backward(losses.sum() * dist.get_world_size(parallel.data_group))
        with torch.no_grad():
            accuracy = count_correct_or_tied(logits[0], batch) / divisors[0]
            totals += torch.cat((losses.detach(), accuracy.reshape(1)))
    dist.all_reduce(totals, group=parallel.data_group)
    return totals


def train(
    flags: argparse.Namespace, config: BertConfig, device: torch.device, stop_request: StopRequest
) -> None:
    run = Run(flags, config, device)
    with run.writer:  # waits at the end for what is being written
        stopped_by = stop_request.signal_on_any_rank()  # during set-up
        if run.step == 0 and (flags.eval_at_start or flags.num_train_steps == 0):
            run.evaluate()
        examples = endless(run.train_loader)
        while not (run.is_complete or stopped_by):
            rate = learning_rate(
                run.step, flags.learning_rate, flags.num_warmup_steps, flags.num_train_steps,
                flags.poly_power, flags.start_warmup_step,
            )  # fmt: skip
            run.begin_update(rate)
            batches = list(itertools.islice(examples, flags.steps_per_update))
            results = accumulate_gradients(run.parallel, batches)
            run.optimizer.step()
            run.step += 1
            run.record(results, rate, count_tokens(batches, run.parallel.data_group))

            if run.is_evaluation_due:
                run.evaluate()
            stopped_by = stop_request.signal_on_any_rank()
            interval = flags.save_checkpoints_steps
            is_save_due = interval > 0 and run.step % interval == 0
            if is_save_due or run.is_complete or stopped_by:
                run.save()
        if run.is_complete:
            run.finish()
        else:
            run.wait_until_written()
            run.recorder.say(
                f"stopped by {stopped_by} after step {run.step:,}; the same command resumes it"
            )


def export(flags: argparse.Namespace, config: BertConfig) -> None:
    """Writes <output_dir>/export from the newest checkpoint, also while the run is training."""
    newest = checkpoint.find_newest_valid(os.path.join(flags.output_dir, "checkpoints"))
    if newest is None:
        raise DataError(f"--export: {flags.output_dir} holds no checkpoint; train first")
    folder = os.path.join(flags.output_dir, "export")
    tokenizer = load_tokenizer(flags.vocab_file, flags.do_lower_case, config)
    model = load_model(newest.path, config)
    step = int(os.path.basename(newest.path).removeprefix("step-"))
    save_model(
        config, dict(model.named_parameters()), folder, tokenizer,
        lambda folder: write_card(folder, flags.output_dir, config, vars(flags), step),
    )  # fmt: skip
    print(f"{folder}: the model of {newest.path}")


def main(argv: list[str] | None = None) -> None:
    flags = parse_flags(argv)
    if flags.export:
        if int(os.environ.get("RANK", 0)) == 0:
            export(flags, load_config(flags.bert_config_file))
        return
    stop_request = StopRequest()
    check(flags, int(os.environ.get("WORLD_SIZE", 1)))
    config = load_config(flags.bert_config_file)
    with readable_errors():
        device = join_processes(flags.device, flags.seed, flags.collective_timeout)
        with lock_output_dir(flags.output_dir):
            train(flags, config, device, stop_request)
    # The data-parallel model must be deleted before the process group. Otherwise its destructor
    # ends the group while it holds the interpreter's lock, and waits for ever for gloo's threads,
    # which need that lock too (seen in 3 of 8 runs). After an error the process ends at once.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    cli.run_as_rank(main)
