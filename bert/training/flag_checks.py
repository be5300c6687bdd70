"""Checks of train.py's flags, data and earlier run; all problems are reported at once."""

import argparse
import fnmatch
import glob
import json
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from transformers import BertConfig

from bert.common.files import (
    DataError,
    FlagError,
    folder_problems,
    is_remote,
    list_folder_or_pattern,
    new_folder_problems,
    raise_if_any,
)
from bert.examples.example_file import open_examples
from bert.examples.instance_file import InstanceFile, is_instance_file, vocabulary_checksum
from bert.training.expected_curve import ExpectedCurve
from bert.training.model import (
    config_values,
    corrupt_weights,
    load_config,
    load_tokenizer,
    missing_model,
)

Result = TypeVar("Result")

CPU_PLUGINS = {"ddp"}
# torchrun sets these for each process.
_PROCESS_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip

# Flags that may differ when a run resumes. Training data are compared by the names and sizes of the
# files, not their folders, --init_checkpoint by its last name, configurations by their content.
CHANGEABLE_FLAGS = {
    "output_dir", "bert_config_file", "vocab_file", "tfrecord_train", "idx_train", "tfrecord_eval",
    "idx_eval", "max_seq_length", "max_predictions_per_seq", "num_threads", "steps_per_update",
    "device", "precision", "plugin", "tp_size", "unpad", "compile", "gradient_checkpointing",
    "collective_timeout", "save_checkpoints_steps", "keep_checkpoint_max", "export",
    "balance", "eval_batch_size", "eval_every_samples", "eval_at_start", "target_accuracy",
    "expected_curve", "dry_run",
}  # fmt: skip

# Flags that may differ between the ranks of a run: paths and capacities of a machine.
FLAGS_OF_A_RANK = {
    "output_dir", "bert_config_file", "vocab_file", "init_checkpoint", "expected_curve",
    "tfrecord_train", "idx_train", "tfrecord_eval", "idx_eval", "num_threads", "collective_timeout",
}  # fmt: skip


def check(flags: argparse.Namespace, world_size: int) -> None:
    """Raises FlagError with all problems, DataError if only the data are wrong. `world_size`:
    processes of the run.
    """
    config_problems, config = _attempt("--bert_config_file", load_config, flags.bert_config_file)
    wrong = [
        *_wrong_numbers(flags), *_wrong_combinations(flags, world_size), *_wrong_devices(flags),
        *config_problems, *(_wrong_for_config(flags, config) if config else []),
        *_wrong_files(flags, config), *_wrong_folders(flags), *_wrong_for_resuming(flags, config),
    ]  # fmt: skip
    raise_if_any([*wrong, *_corrupt_files(flags)], FlagError if wrong else DataError)


def check_dry_run(flags: argparse.Namespace) -> None:
    """The same for --dry_run, which needs one file of examples, and no GPU."""
    config_problems, config = _attempt("--bert_config_file", load_config, flags.bert_config_file)
    wrong = [
        *_wrong_numbers(flags), *_wrong_combinations(flags, max(1, flags.tp_size)),
        *config_problems, *(_wrong_for_config(flags, config) if config else []),
        *_attempt("--tfrecord_train", _local_files, flags.tfrecord_train)[0],
        *_wrong_examples(flags, config, "train"),
    ]  # fmt: skip
    raise_if_any([*wrong, *_corrupt_examples(flags, "train")], FlagError if wrong else DataError)


def _attempt(
    flag: str, function: Callable[..., Result], *args: Any
) -> tuple[list[str], Result | None]:
    """Calls a function; returns ([] or [its error], its result or None)."""
    try:
        return [], function(*args)
    except (DataError, OSError) as error:
        return [f"{flag}: {error}"], None


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
    problems, _ = _attempt(
        "--vocab_file", load_tokenizer, flags.vocab_file, flags.do_lower_case, config
    )
    for name in ("num_attention_heads", "hidden_size", "intermediate_size"):
        if flags.tp_size > 1 and getattr(config, name) % flags.tp_size:
            problems.append(
                f"{flags.bert_config_file}: {name} {getattr(config, name)} is not divisible by "
                f"--tp_size={flags.tp_size}"
            )
    return problems


def _wrong_files(flags, config):
    problems = []
    if flags.init_checkpoint and not _checkpoints(flags):
        if problem := missing_model(flags.init_checkpoint):
            problems.append(f"--init_checkpoint: {problem}")
    if flags.expected_curve:
        problems += _attempt("--expected_curve", ExpectedCurve.read, flags.expected_curve)[0]
    for split in ("train", "eval"):
        flag, indexes = f"--tfrecord_{split}", getattr(flags, f"idx_{split}")
        found, files = _attempt(flag, _local_files, getattr(flags, flag[2:]))
        problems += found
        if files and is_instance_file(files[0]):
            problems += _wrong_for_instances(flags, config, split, files[0])
        elif indexes and not is_folder_of_indexes(indexes):
            problems += _attempt(f"--idx_{split}", _local_files, indexes)[0]
        if files and split == "train" and flags.balance and not is_instance_file(files[0]):
            problems.append(
                f"--balance: {files[0]} is a TFRecord file, which does not tell how long its "
                "examples are: make instance files (--output_format=instances), or leave it out"
            )
        problems += _wrong_examples(flags, config, split)
    return problems


def _wrong_examples(flags, config, split):
    lengths = _lengths(flags, split)
    if not lengths:
        return []
    place = f"--tfrecord_{split}: {_files(flags, split)[0]}"
    return _wrong_shape(flags, config, place, lengths)


def _files(flags, split):
    """Returns the files of "train" or "eval"; [] if the flag means none."""
    return _attempt("", _local_files, getattr(flags, f"tfrecord_{split}"))[1] or []


def _local_files(where):
    if is_remote(where):
        raise DataError(_not_local(where))
    return list_folder_or_pattern(where)


def _not_local(where):
    return (
        f"{where}: training uses local files only; copy them to a disk, or mount them as a folder"
    )


def _lengths(flags, split):
    """Returns {feature: values} of the first example of "train" or "eval"; {} if there is none."""
    files = _files(flags, split)
    file = _attempt("", open_examples, files[0])[1] if files else None
    return file.lengths if file else {}


def _corrupt_files(flags):
    problems = []
    if flags.init_checkpoint and not _checkpoints(flags):
        if problem := corrupt_weights(flags.init_checkpoint):
            problems.append(f"--init_checkpoint: {problem}")
    return [*problems, *_corrupt_examples(flags, "train"), *_corrupt_examples(flags, "eval")]


def _corrupt_examples(flags, split):
    return [
        problem
        for path in _files(flags, split)[:1]
        for problem in _attempt(f"--tfrecord_{split}", open_examples, path)[0]
    ]


def _wrong_for_instances(flags, config, split, path):
    problems = []
    if getattr(flags, f"idx_{split}"):
        problems.append(
            f"--idx_{split}: {path} is an instance file, which needs no index; leave the flag out"
        )
    _, file = _attempt("", InstanceFile, path)
    tokenizer = None
    if config:
        _, tokenizer = _attempt("", load_tokenizer, flags.vocab_file, flags.do_lower_case, config)
    if file and tokenizer and file.header.vocabulary != vocabulary_checksum(tokenizer.vocab):
        problems.append(
            f"--vocab_file: {flags.vocab_file} is not the vocabulary of {path} "
            f"({file.header.vocab_size:,} tokens); use the one that made the examples"
        )
    return problems


def _wrong_shape(flags, config, place, lengths):
    seq_length, predictions = lengths["input_ids"], lengths["masked_lm_ids"]
    problems = [
        f"{place}: examples of {found} {what}, but --{name}={getattr(flags, name)}"
        for name, found, what in (
            ("max_seq_length", seq_length, "tokens"),
            ("max_predictions_per_seq", predictions, "predictions"),
        )
        if getattr(flags, name) not in (None, found)
    ]
    if config and seq_length > config.max_position_embeddings:
        problems.append(
            f"{place}: examples of {seq_length} tokens, but {flags.bert_config_file} has "
            f"max_position_embeddings {config.max_position_embeddings}; "
            "make shorter examples or use another configuration"
        )
    return problems


# --------------------------------------------------------------------------------------------------
# Folders that are written in

_FILES_OF_A_RUN = ("curves.png", "flags.json", "metrics.jsonl", "mlperf.log")


def _wrong_folders(flags):
    problems = _folder_problems("output_dir", flags.output_dir, folder_problems)
    new_files = {"output_dir": _FILES_OF_A_RUN}
    for split in ("train", "eval"):
        name, indexes = f"idx_{split}", getattr(flags, f"idx_{split}")
        if indexes and is_folder_of_indexes(indexes):
            problems += _folder_problems(name, indexes, new_folder_problems)
            new_files[name] = _index_names(flags, split)
    if "idx_train" in new_files and "idx_eval" in new_files:
        is_one = os.path.realpath(flags.idx_train) == os.path.realpath(flags.idx_eval)
        if is_one and _files(flags, "train") != _files(flags, "eval"):
            problems.append(
                f"--idx_eval: {flags.idx_eval} is --idx_train too; give each a folder of its own, "
                "which holds the indexes of its files only"
            )
    for name, names in new_files.items():
        for data_flag in ("tfrecord_train", "tfrecord_eval"):
            where, data = getattr(flags, name), getattr(flags, data_flag)
            if _takes_for_data(data, where, names):
                problems.append(
                    f"--{name}: {where} is among the data of --{data_flag}={data}, and its new "
                    "files would be taken for examples; choose a folder outside"
                )
    return problems


def _folder_problems(name, folder, problems_of):
    problems = [_not_local(folder)] if is_remote(folder) else problems_of(folder)
    return [f"--{name}: {problem}" for problem in problems]


def _index_names(flags, split):
    return [f"{os.path.basename(path)}.idx" for path in _files(flags, split)]


def _takes_for_data(data, folder, names):
    """Whether `data`, a folder or patterns, would mean files of these names in a folder too."""
    folder = os.path.realpath(folder)
    if os.path.isdir(data):
        return folder == os.path.realpath(data)
    return any(
        os.path.realpath(os.path.dirname(pattern)) == folder
        and fnmatch.filter(names, os.path.basename(pattern))
        for pattern in data.split(",")
    )


# --------------------------------------------------------------------------------------------------
# What is allowed, but rarely meant


def warnings(flags: argparse.Namespace) -> list[str]:
    """Returns what to say of flags that `check` has found right."""
    found = []
    last_warmup_step = flags.num_warmup_steps + flags.start_warmup_step
    if 0 < flags.num_train_steps <= last_warmup_step:
        found.append(
            f"--num_warmup_steps={flags.num_warmup_steps} is no shorter than "
            f"--num_train_steps={flags.num_train_steps}: the learning rate never reaches "
            f"--learning_rate={flags.learning_rate:g}"
        )
    trained = {_identity(path) for path in _files(flags, "train")}
    both = [path for path in _files(flags, "eval") if _identity(path) in trained]
    if both and flags.num_train_steps:
        found.append(
            f"{both[0]}{f' and {len(both) - 1} more' if len(both) > 1 else ''}: both in "
            "--tfrecord_train and in --tfrecord_eval: the accuracy is that of examples which the "
            "model has seen; evaluate on others (pick_eval_samples.py)"
        )
    lengths = [_lengths(flags, split)["input_ids"] for split in ("train", "eval")]
    if lengths[0] != lengths[1]:
        found.append(
            f"the evaluation examples have {lengths[1]} tokens, the training examples {lengths[0]}"
        )
    return found


def _identity(path):
    """The same for all names of a file: links, hard links."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


# --------------------------------------------------------------------------------------------------
# An earlier run in the output folder


def flags_path(output_dir: str) -> str:
    return os.path.join(output_dir, "flags.json")


def _checkpoints(flags):
    return glob.glob(os.path.join(glob.escape(flags.output_dir), "checkpoints", "step-*"))


def flags_content(flags: argparse.Namespace, config: BertConfig, data: dict[str, Any]) -> bytes:
    """Returns the content of a run's flags.json. data: what it trains on, for the model card."""
    content = {"flags": vars(flags), "bert_config": config_values(config), "data": data}
    return json.dumps(content, indent=1).encode()


def read_record(output_dir: str) -> dict[str, Any]:
    """Returns the content of a run's flags.json: "flags", "bert_config", and "data" unless an
    earlier version wrote it. DataError if it cannot be read.
    """
    path = flags_path(output_dir)
    try:
        with open(path) as file:
            record = {"data": {}} | json.load(file)
        if lacking := {"flags", "bert_config"} - record.keys():
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        return record
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: not the flags of a run ({type(error).__name__}: {error})"
        ) from None


def _wrong_for_resuming(flags, config):
    """Returns a message for each flag that differs from the earlier run's but must not change."""
    if not os.path.exists(flags_path(flags.output_dir)):
        if os.path.exists(os.path.join(flags.output_dir, "metrics.jsonl")):
            return [
                f"--output_dir: {flags.output_dir} holds a metrics.jsonl but no flags.json; "
                "choose another folder"
            ]
        return []
    try:
        record = read_record(flags.output_dir)
    except DataError as error:
        return [f"{error}; choose another --output_dir"]
    earlier, earlier_config = record["flags"], record["bert_config"]
    problems = [
        _changed(flags, f"--{name}={value}", earlier.get(name))
        for name, value in vars(flags).items()
        if name not in CHANGEABLE_FLAGS
        and _comparable(name, value) != _comparable(name, earlier.get(name))
    ]
    if os.path.isdir(os.path.join(flags.output_dir, "model")) and not _checkpoints(flags):
        problems.append(
            f"--output_dir: the run in {flags.output_dir} has ended and its checkpoints are gone; "
            f"choose another --output_dir, with --init_checkpoint={flags.output_dir}/model to "
            "continue training its model"
        )
    if config:
        problems += [
            _changed(flags, f"{flags.bert_config_file}: {name} {value}", earlier_config.get(name))
            for name, value in config_values(config).items()
            if value != earlier_config.get(name)
        ]
    return problems


def _comparable(name, value):
    return os.path.basename(value.rstrip("/")) if name == "init_checkpoint" and value else value


def _changed(flags, value, earlier):
    return (
        f"{value}: the run in {flags.output_dir} was started with {earlier}; "
        "choose another --output_dir for another run"
    )


# --------------------------------------------------------------------------------------------------
# Where indexes are


def indexes_of(flags: argparse.Namespace, split: str) -> str:
    """Returns the folder, pattern or file of the indexes of "train" or "eval"."""
    return getattr(flags, f"idx_{split}") or os.path.join(flags.output_dir, "idx", split)


def folders_of_indexes(flags: argparse.Namespace) -> dict[str, str]:
    """Returns the folders, which may not exist yet, that get the missing indexes of TFRecords:
    {"train" and "eval": folder}.
    """
    folders = {}
    for split in ("train", "eval"):
        files, indexes = _files(flags, split), indexes_of(flags, split)
        # The default is a folder, also where --output_dir looks like a pattern.
        is_folder = not getattr(flags, f"idx_{split}") or is_folder_of_indexes(indexes)
        if is_folder and files and not is_instance_file(files[0]):
            folders[split] = indexes
    return folders


def is_folder_of_indexes(where: str) -> bool:
    """Whether --idx_* is a folder, which may not exist yet, and not a pattern or a file."""
    # isfile, not exists: another rank may be creating the folder at this moment.
    return os.path.isdir(where) or not (os.path.isfile(where) or glob.has_magic(where))
