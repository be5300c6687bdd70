#!/usr/bin/env python3
"""BERT pretraining with ColossalAI: masked LM and next-sentence prediction on MLPerf's examples.

torchrun --nproc_per_node=8 train.py --bert_config_file=configs/bert_large.json --output_dir=runs/large \\
    --tfrecord_train=tfrecord --idx_train=idx/train --tfrecord_eval=eval --idx_eval=idx/eval --optimizer=adamw \\
    --train_batch_size=256 --learning_rate=1e-4 --num_warmup_steps=10000 --num_train_steps=1000000

Writes <output_dir>/metrics.jsonl (a line per step and per evaluation), curves.png, and at the end model/, which Hugging
Face's BertForPreTraining.from_pretrained loads. One process per GPU; without CUDA it trains on the CPU over gloo.
"""

import contextlib
import ctypes
import gc
import itertools
import math
import os
import socket
import time

from bert import quiet_imports  # noqa: F401  before the frameworks

# isort: split
import colossalai
import torch
import torch.distributed as dist
from colossalai.accelerator import set_accelerator
from colossalai.booster import Booster
from colossalai.booster.plugin import TorchDDPPlugin

from bert import cli
from bert.files import DataError, list_folder_or_pattern, raise_all
from bert.metrics import Recorder, evaluate, plot_curves
from bert.model import build_model, load_config, load_model, loss_sums, predict, save_model
from bert.optimization import AdamWeightDecay, Lamb, clip_gradients, learning_rate, parameter_groups
from bert_dali_dataloader import build_dali_eval, build_dali_train


def parse_flags(argv=None):
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument_group("model and output").add_argument
    add("--bert_config_file", required=True, help="configs/bert_large.json or another of MLPerf's form")
    add("--init_checkpoint", help="Hugging Face folder to start from, such as a run's model/; leave out for random weights")
    add("--output_dir", required=True, help="new folder for this run")
    data = parser.add_argument_group("data: folders, glob patterns or files")
    add = data.add_argument
    add("--tfrecord_train", required=True, help="training TFRecords")
    add("--idx_train", required=True, help="their indexes (make_idx.py)")
    add("--tfrecord_eval", required=True, help="evaluation TFRecords")
    add("--idx_eval", required=True, help="their indexes")
    cli.add_boolean_flag(data, "shuffle", True, "False: training examples in file order")
    add("--num_threads", type=int, default=4, help="loader threads per process (default: %(default)s)")
    add = parser.add_argument_group("training").add_argument
    add("--train_batch_size", type=int, required=True, help="examples per step over all processes")
    add("--steps_per_update", type=int, default=1, help="gradient accumulation; 1: none (default: %(default)s)")
    add("--num_train_steps", type=int, required=True, help="optimizer steps; 0: only evaluate")
    add("--num_warmup_steps", type=int, default=0, help="steps of linear warm-up; 0: none (default: %(default)s)")
    add("--start_warmup_step", type=int, default=0, help="step at which warm-up begins, 0 or less (default: %(default)s)")
    add("--learning_rate", type=float, required=True, help="peak rate")
    add("--poly_power", type=float, default=1.0, help="power of the decay to 0 (default: %(default)s, linear)")
    add("--optimizer", choices=("lamb", "adamw"), default="lamb", help="(default: %(default)s)")
    add("--lamb_beta_1", type=float, default=0.9, help="first-moment decay of either optimizer (default: %(default)s)")
    add("--lamb_beta_2", type=float, default=0.999, help="second-moment decay (default: %(default)s)")
    add("--lamb_weight_decay_rate", type=float, default=0.01, help="weight decay; 0: none (default: %(default)s)")
    add("--log_epsilon", type=float, default=-6.0, help="epsilon of the optimizer is 10 to this power (default: %(default)s)")
    add("--max_grad_norm", type=float, default=1.0, help="clip the global gradient norm; 0: no clipping (default: %(default)s)")
    add("--seed", type=int, default=12345, help="of weights, dropout and shuffling (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is any (default: %(default)s)")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 autocast on CUDA, fp32 on CPU")
    evaluation = parser.add_argument_group("evaluation")
    add = evaluation.add_argument
    add("--eval_batch_size", type=int, default=32, help="examples per evaluation batch of a process (default: %(default)s)")
    add("--eval_every_samples", type=int, help="training examples between evaluations (default: MLPerf's formula)")
    cli.add_boolean_flag(evaluation, "eval_at_start", False, "evaluate before the first step too")
    return parser.parse_args(argv)


def check(flags, world_size):
    problems = []
    for name in ("train_batch_size", "eval_batch_size", "steps_per_update", "num_threads"):
        if getattr(flags, name) < 1:
            problems.append(f"--{name}={getattr(flags, name)}: expected 1 or more")
    for name in ("num_train_steps", "num_warmup_steps", "lamb_weight_decay_rate", "max_grad_norm"):
        if getattr(flags, name) < 0:
            problems.append(f"--{name}={getattr(flags, name)}: expected 0 or more")
    if flags.eval_every_samples is not None and flags.eval_every_samples < 1:
        problems.append(f"--eval_every_samples={flags.eval_every_samples}: expected 1 or more")
    parts = world_size * flags.steps_per_update
    if parts > 0 and flags.train_batch_size % parts:
        problems.append(
            f"--train_batch_size={flags.train_batch_size} is not divisible by {world_size} processes "
            f"x --steps_per_update={flags.steps_per_update}"
        )
    if flags.start_warmup_step > 0:
        problems.append(
            f"--start_warmup_step={flags.start_warmup_step}: a positive start means negative rates; expected 0 or less"
        )
    for name, is_fine, expected in (
        ("learning_rate", 0 <= flags.learning_rate < math.inf, "0 or more"),
        ("lamb_beta_1", 0 <= flags.lamb_beta_1 < 1, "0 to below 1"),
        ("lamb_beta_2", 0 <= flags.lamb_beta_2 < 1, "0 to below 1"),
    ):
        if not is_fine:
            problems.append(f"--{name}={getattr(flags, name)}: expected {expected}")
    for name in ("tfrecord_train", "idx_train", "tfrecord_eval", "idx_eval"):
        try:
            list_folder_or_pattern(getattr(flags, name))
        except DataError as error:
            problems.append(f"--{name}: {error}")
    local_processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if flags.device != "cpu" and 0 < gpus < local_processes:
        problems.append(f"{local_processes} processes on this machine, but {gpus} GPUs; use torchrun --nproc_per_node={gpus}")
    if flags.device == "cuda" and not torch.cuda.is_available():
        problems.append("--device=cuda: torch finds no CUDA GPU here; leave the flag out to train on the CPU")
    if not os.path.isfile(flags.bert_config_file):
        problems.append(f"--bert_config_file: {flags.bert_config_file}: no such file")
    if os.path.exists(metrics := os.path.join(flags.output_dir, "metrics.jsonl")):
        problems.append(f"--output_dir: {metrics} is there: a run was made here; choose another folder or delete this one")
    raise_all(problems)


# ---------------------------------------------------------------------------------------------------------------
# Derived settings


def mlperf_eval_interval(batch_size):
    """Samples between evaluations (MLPerf Training rules, BERT)."""
    return math.floor(0.05 * (230.23 * batch_size + 3_000_000) / 25_000) * 25_000


def set_up_processes(flags):
    """Joins the process group; returns the device of this process."""
    if "RANK" not in os.environ:  # a plain `python3 train.py`
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": 1,
            "LOCAL_WORLD_SIZE": 1,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in alone.items()})
    use_cuda = flags.device != "cpu" and torch.cuda.is_available()
    if not use_cuda:
        set_accelerator("cpu")  # before launch, which would take a GPU that it finds
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"])))
        keep_freed_memory()
    colossalai.launch_from_torch(seed=flags.seed, verbose=False)
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")


def keep_freed_memory():
    """Has glibc keep large blocks instead of giving them back and faulting them in anew at every step.

    The logits alone are 78 MB at 32 x 20 predictions: a step of configs/bert_tiny.json takes 0.23 s instead of 0.31 s.
    """
    m_trim_threshold, m_mmap_threshold, two_gib = -1, -3, 2**31 - 1  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, two_gib)


def build_loaders(flags, config, device):
    options = {
        "shard_id": dist.get_rank(), "num_shards": dist.get_world_size(), "num_threads": flags.num_threads,
        "cuda": device.type == "cuda", "device_id": device.index, "seed": flags.seed, "vocab_size": config.vocab_size,
    }  # fmt: skip
    micro_batch_size = flags.train_batch_size // (dist.get_world_size() * flags.steps_per_update)
    return (
        build_dali_train(flags.tfrecord_train, flags.idx_train, batch_size=micro_batch_size, shuffle=flags.shuffle, **options),
        build_dali_eval(flags.tfrecord_eval, flags.idx_eval, batch_size=flags.eval_batch_size, **options),
    )


def check_data(loaders, config, config_file):
    """DataError if the examples are longer than the model allows; the loaders check their token ids."""
    problems = []
    for loader, flag in zip(loaders, ("--tfrecord_train", "--tfrecord_eval")):
        seq_length = len(loader.first_example["input_ids"])
        if seq_length > config.max_position_embeddings:
            problems.append(
                f"{flag}: examples of {seq_length} tokens, but {config_file} has max_position_embeddings "
                f"{config.max_position_embeddings}; make shorter examples or use another configuration"
            )
    raise_all(problems)


def build_optimizer(flags, model):
    optimizer_class = {"lamb": Lamb, "adamw": AdamWeightDecay}[flags.optimizer]
    groups = parameter_groups(model, flags.lamb_weight_decay_rate)
    return optimizer_class(groups, betas=(flags.lamb_beta_1, flags.lamb_beta_2), eps=10**flags.log_epsilon)


def describe(flags, model, loaders, eval_every_samples, device, use_bf16):
    train_examples, eval_examples = (loader.num_records for loader in loaders)
    world_size = dist.get_world_size()
    return (
        f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters | {world_size} x {device.type}, "
        f"{'bf16 autocast' if use_bf16 else 'fp32'} | batch {flags.train_batch_size} = {world_size} processes x "
        f"{flags.steps_per_update} micro-batches x {flags.train_batch_size // (world_size * flags.steps_per_update)} examples\n"
        f"{train_examples:,} training examples | {flags.num_train_steps:,} steps = "
        f"{flags.num_train_steps * flags.train_batch_size / train_examples:.2f} epochs | "
        f"{eval_examples:,} evaluation examples, evaluated every {eval_every_samples:,} samples"
    )


# ---------------------------------------------------------------------------------------------------------------
# Training


def endless(loader):
    while True:
        yield from loader


def denominators(batches):
    """Returns float32 [2]: sum of masked LM weights plus 1e-5, and examples, of one update over all ranks.

    Dividing by the sums of the whole update makes a loss that does not depend on how ranks and micro-batches cut it.
    """
    weights = torch.stack([batch["masked_lm_weights"].sum() for batch in batches]).sum()
    sums = torch.stack([weights, torch.full_like(weights, sum(len(batch["input_ids"]) for batch in batches))])
    dist.all_reduce(sums)
    return sums + sums.new_tensor([1e-5, 0.0])


def accumulate_gradients(booster, model, optimizer, batches, autocast):
    """Forward and backward over the micro-batches of one update; returns its two losses over all ranks, float32 [2]."""
    total, divisor = 0.0, denominators(batches)
    for number, batch in enumerate(batches, start=1):
        is_last = number == len(batches)
        with contextlib.nullcontext() if is_last else booster.no_sync(model, optimizer):
            with autocast:
                logits = predict(model, batch)
            losses = torch.stack(loss_sums(logits, batch)) / divisor
            # The plugin averages gradients over the ranks; the losses are already shares of the sum over ranks.
            booster.backward(losses.sum() * dist.get_world_size(), optimizer)
        total = total + losses.detach()
    dist.all_reduce(total)
    return total


def train(flags, config, device):
    train_loader, eval_loader = loaders = build_loaders(flags, config, device)
    check_data(loaders, config, flags.bert_config_file)
    eval_every_samples = flags.eval_every_samples or mlperf_eval_interval(flags.train_batch_size)
    use_bf16 = flags.precision == "bf16" or (flags.precision == "auto" and device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=use_bf16)

    # The same weights on every rank, then dropout of its own.
    module = load_model(flags.init_checkpoint, config) if flags.init_checkpoint else build_model(config)
    torch.manual_seed(flags.seed + 1 + dist.get_rank())
    booster = Booster(plugin=TorchDDPPlugin())
    model, optimizer, *_ = booster.boost(module, build_optimizer(flags, module))
    recorder = Recorder(flags.output_dir, flags.num_train_steps, flags.train_batch_size)
    recorder.say(describe(flags, module, loaders, eval_every_samples, device, use_bf16))

    def run_evaluation(step):
        started = time.monotonic()
        with autocast:
            metrics = evaluate(module, eval_loader, device)
        recorder.evaluation(step, metrics, time.monotonic() - started)

    if flags.eval_at_start or flags.num_train_steps == 0:
        run_evaluation(0)
    examples = endless(train_loader)
    model.train()
    for step in range(1, flags.num_train_steps + 1):
        rate = learning_rate(
            step - 1,
            flags.learning_rate,
            flags.num_warmup_steps,
            flags.num_train_steps,
            flags.poly_power,
            flags.start_warmup_step,
        )
        optimizer.zero_grad()
        batches = list(itertools.islice(examples, flags.steps_per_update))
        losses = accumulate_gradients(booster, model, optimizer, batches, autocast)
        gradient_norm, is_finite = clip_gradients(module.parameters(), flags.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step(is_finite=is_finite)
        recorder.step(step, losses, gradient_norm, rate)
        samples = step * flags.train_batch_size
        is_evaluation_due = samples // eval_every_samples > (samples - flags.train_batch_size) // eval_every_samples
        if is_evaluation_due or step == flags.num_train_steps:
            run_evaluation(step)

    if recorder.is_main:
        if flags.num_train_steps > 0:
            save_model(module, os.path.join(flags.output_dir, "model"))
            plot_curves(os.path.join(flags.output_dir, "metrics.jsonl"), os.path.join(flags.output_dir, "curves.png"))
        recorder.say(
            f"done: {', '.join(os.path.join(flags.output_dir, name) for name in sorted(os.listdir(flags.output_dir)))}"
        )


def main(argv=None):
    flags = parse_flags(argv)
    check(flags, int(os.environ.get("WORLD_SIZE", 1)))
    config = load_config(flags.bert_config_file)
    device = set_up_processes(flags)
    train(flags, config, device)
    # The data-parallel model must be gone before the process group: its destructor would otherwise end the group while it
    # holds the interpreter's lock, and wait for ever for gloo's threads, which want that lock too (seen in 3 of 8 runs).
    # After an error the group is left to the end of the process, which comes at once.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    cli.run(main)
