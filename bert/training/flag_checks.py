"""All checks of a train.py command, whose problems are reported together; and those of single
flags.
"""

import argparse
import math
import os

import torch

from bert.common.files import DataError, FlagError, attempt, raise_if_any
from bert.training.checkpoint import has_checkpoints
from bert.training.data_files import Split, splits_of, wrong_folders
from bert.training.expected_curve import ExpectedCurve
from bert.training.flags_file import wrong_for_resuming
from bert.training.model import corrupt_weights, load_config, load_tokenizer, missing_model

CPU_PLUGINS = {"ddp"}
# torchrun sets these for each process.
_PROCESS_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def check(flags: argparse.Namespace, world_size: int) -> None:
    """Raises FlagError with all problems, DataError if only the data are wrong. `world_size`:
    processes of the run.
    """
    train, evaluation = splits_of(flags)
    config_problems, config = attempt("--bert_config_file", load_config, flags.bert_config_file)
    wrong = [
        *_wrong_numbers(flags), *_wrong_combinations(flags, world_size), *_wrong_devices(flags),
        *config_problems, *(_wrong_for_config(flags, config) if config else []),
        *_wrong_start_or_curve(flags), *train.problems(config), *evaluation.problems(config),
        *wrong_folders(flags, train, evaluation), *wrong_for_resuming(flags, config),
    ]  # fmt: skip
    corrupt = [*_corrupt_weights(flags), *train.corrupt, *evaluation.corrupt]
    raise_if_any([*wrong, *corrupt], FlagError if wrong else DataError)


def check_dry_run(flags: argparse.Namespace) -> None:
    """The same for --dry_run, which needs one file of examples, and no GPU."""
    train = Split(flags, "train")
    config_problems, config = attempt("--bert_config_file", load_config, flags.bert_config_file)
    wrong = [
        *_wrong_numbers(flags), *_wrong_combinations(flags, max(1, flags.tp_size)),
        *config_problems, *(_wrong_for_config(flags, config) if config else []),
        *train.missing, *train.wrong_shape(config),
    ]  # fmt: skip
    raise_if_any([*wrong, *train.corrupt], FlagError if wrong else DataError)


def _wrong_numbers(flags):
    ranges = {
        "1 or more": (
            lambda value: value >= 1,
            (
                "train_batch_size", "eval_batch_size", "steps_per_update", "num_threads",
                "tp_size", "eval_every_samples", "max_seq_length",
            ),
        ),
        "0 or more": (
            lambda value: 0 <= value < math.inf,
            (
                "num_train_steps", "num_warmup_steps", "lamb_weight_decay_rate", "max_grad_norm",
                "save_checkpoints_steps", "keep_checkpoint_max", "learning_rate",
                "max_predictions_per_seq", "poly_power",
            ),
        ),
        "0 or less, as a positive start means negative rates": (
            lambda value: value <= 0, ("start_warmup_step",),
        ),
        "0 to below 1": (lambda value: 0 <= value < 1, ("lamb_beta_1", "lamb_beta_2")),
        "above 0, to 1": (lambda value: 0 < value <= 1, ("target_accuracy",)),
        "above 0": (lambda value: 0 < value < math.inf, ("collective_timeout",)),
        "0 to 4294967295": (lambda value: 0 <= value < 2**32, ("seed",)),
        "a power of 10 such as -6": (lambda value: -38 <= value <= 0, ("log_epsilon",)),
    }  # fmt: skip
    return [
        f"--{name}={getattr(flags, name)}: expected {expected}"
        for expected, (is_fine, names) in ranges.items()
        for name in names
        if getattr(flags, name) is not None and not is_fine(getattr(flags, name))
    ]


def _wrong_combinations(flags, world_size):
    problems = []
    if flags.tp_size > 1 and flags.plugin != "hybrid":
        problems.append(
            f"--tp_size={flags.tp_size} is tensor parallelism: "
            f"it needs --plugin=hybrid, found --plugin={flags.plugin}"
        )
    if flags.tp_size >= 1 and world_size % flags.tp_size:
        problems.append(f"--tp_size={flags.tp_size} does not divide the {world_size} processes")
    elif flags.tp_size >= 1 and flags.steps_per_update >= 1:
        shares = world_size // flags.tp_size
        if flags.train_batch_size % (shares * flags.steps_per_update):
            what = "processes" if flags.tp_size == 1 else f"groups of {flags.tp_size} processes"
            problems.append(
                f"--train_batch_size={flags.train_batch_size} is not divisible by {shares} {what} "
                f"x --steps_per_update={flags.steps_per_update}"
            )
    if flags.adam_bias_correction and flags.optimizer != "adamw":
        problems.append(
            f"--adam_bias_correction is for --optimizer=adamw, found --optimizer={flags.optimizer}"
        )
    if flags.compile and flags.plugin == "hybrid":
        problems.append("--compile cannot be combined with --plugin=hybrid")
    return problems


def _wrong_devices(flags):
    problems, gpus = [], torch.cuda.device_count()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    missing = [name for name in _PROCESS_VARIABLES if name not in os.environ]
    if "RANK" in os.environ and missing:
        problems.append(
            f"RANK is set, but not {', '.join(missing)}: use torchrun, "
            "or set them as configs/train.sbatch does"
        )
    is_srun = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    if "RANK" not in os.environ and is_srun:
        problems.append(
            "srun starts several processes, but RANK is not set for each: "
            "see configs/train.sbatch, or use torchrun"
        )
    use_cuda = flags.device != "cpu" and gpus > 0
    if use_cuda and gpus < local_processes:
        problems.append(
            f"{local_processes} processes on this machine, but {gpus} GPUs; "
            f"use torchrun --nproc_per_node={gpus}"
        )
    if flags.device == "cuda" and not gpus:
        problems.append(
            "--device=cuda: torch finds no CUDA GPU here; leave the flag out to train on the CPU"
        )
    if not use_cuda and flags.plugin not in CPU_PLUGINS:
        problems.append(
            f"--plugin={flags.plugin}: ColossalAI has it for CUDA GPUs only; "
            "on the CPU leave the flag out"
        )
    return problems


def _wrong_for_config(flags, config):
    problems, _ = attempt(
        "--vocab_file", load_tokenizer, flags.vocab_file, flags.do_lower_case, config
    )
    for name in ("num_attention_heads", "hidden_size", "intermediate_size"):
        if flags.tp_size > 1 and getattr(config, name) % flags.tp_size:
            problems.append(
                f"{flags.bert_config_file}: {name} {getattr(config, name)} is not divisible by "
                f"--tp_size={flags.tp_size}"
            )
    return problems


def _wrong_start_or_curve(flags):
    problems = []
    if _begins_with_checkpoint(flags):
        if problem := missing_model(flags.init_checkpoint):
            problems.append(f"--init_checkpoint: {problem}")
    if flags.expected_curve:
        problems += attempt("--expected_curve", ExpectedCurve.read, flags.expected_curve)[0]
    return problems


def _corrupt_weights(flags):
    problem = _begins_with_checkpoint(flags) and corrupt_weights(flags.init_checkpoint)
    return [f"--init_checkpoint: {problem}"] if problem else []


def _begins_with_checkpoint(flags):
    """Whether --init_checkpoint counts: not where the run resumes from its own checkpoints."""
    return flags.init_checkpoint and not has_checkpoints(flags.output_dir)


# --------------------------------------------------------------------------------------------------
# What is allowed, but rarely meant


def warnings(flags: argparse.Namespace, train: Split, evaluation: Split) -> list[str]:
    """Returns what to say of flags that `check` has found right."""
    found = []
    last_warmup_step = flags.num_warmup_steps + flags.start_warmup_step
    if 0 < flags.num_train_steps <= last_warmup_step:
        found.append(
            f"--num_warmup_steps={flags.num_warmup_steps} is no shorter than "
            f"--num_train_steps={flags.num_train_steps}: the learning rate never reaches "
            f"--learning_rate={flags.learning_rate:g}"
        )
    trained = {_identity(path) for path in train.files}
    both = [path for path in evaluation.files if _identity(path) in trained]
    if both and flags.num_train_steps:
        found.append(
            f"{both[0]}{f' and {len(both) - 1} more' if len(both) > 1 else ''}: both in "
            "--tfrecord_train and in --tfrecord_eval: the accuracy is that of examples which the "
            "model has seen; evaluate on others (pick_eval_samples.py)"
        )
    lengths = [split.lengths["input_ids"] for split in (train, evaluation)]
    if lengths[0] != lengths[1]:
        found.append(
            f"the evaluation examples have {lengths[1]} tokens, the training examples {lengths[0]}"
        )
    return found


def _identity(path):
    """The same for all names of a file: links, hard links."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
