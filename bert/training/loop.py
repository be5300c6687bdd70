"""The training loop of train.py."""

import argparse
import gc
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
import torch.distributed as dist

from bert.training.distributed import StopRequest
from bert.training.flag_checks import check
from bert.training.launch import join_processes, lock_output_dir, readable_errors
from bert.training.model import (
    Batch,
    count_correct_or_tied,
    load_config,
    loss_sums,
    predict,
)
from bert.training.optimization import learning_rate
from bert.training.plugins import DataParallel
from bert.training.run import Run


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


def train(flags: argparse.Namespace) -> None:
    """Checks the flags, joins the other processes and trains."""
    stop_request = StopRequest()
    check(flags, int(os.environ.get("WORLD_SIZE", 1)))
    config = load_config(flags.bert_config_file)
    with readable_errors():
        device = join_processes(flags.device, flags.seed, flags.collective_timeout)
        with lock_output_dir(flags.output_dir):
            _run_steps(flags, config, device, stop_request)
    # The data-parallel model must be deleted before the process group. Otherwise its destructor
    # ends the group while it holds the interpreter's lock, and waits for ever for gloo's threads,
    # which need that lock too (seen in 3 of 8 runs). After an error the process ends at once.
    gc.collect()
    dist.destroy_process_group()


def _run_steps(flags, config, device, stop_request):
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
