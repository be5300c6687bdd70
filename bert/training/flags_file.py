"""A run's flags.json: the flags of its last start, and which may change when it resumes."""

import argparse
import json
import os
from typing import Any

from transformers import BertConfig

from bert.common.files import DataError
from bert.training.checkpoint import has_checkpoints
from bert.training.model import config_values

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


def flags_path(output_dir: str) -> str:
    return os.path.join(output_dir, "flags.json")


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


def wrong_for_resuming(flags: argparse.Namespace, config: BertConfig | None) -> list[str]:
    """Returns a message for each flag that differs from those of the run in the output folder, but
    must not change. config: None if it cannot be read.
    """
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
    if os.path.isdir(os.path.join(flags.output_dir, "model")) and not has_checkpoints(
        flags.output_dir
    ):
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
