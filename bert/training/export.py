"""train.py --export: the model of a run's newest checkpoint, for Hugging Face."""

import argparse
import os

from bert.common.files import DataError
from bert.training import checkpoint
from bert.training.model import load_config, load_model, load_tokenizer, save_model
from bert.training.model_card import write_export_card


def export(flags: argparse.Namespace) -> None:
    """Writes <output_dir>/export from the newest checkpoint, also while the run is training; on
    rank 0.
    """
    if int(os.environ.get("RANK", 0)) != 0:
        return
    config = load_config(flags.bert_config_file)
    newest = checkpoint.find_newest_valid(os.path.join(flags.output_dir, "checkpoints"))
    if newest is None:
        raise DataError(f"--export: {flags.output_dir} holds no checkpoint; train first")
    folder = os.path.join(flags.output_dir, "export")
    tokenizer = load_tokenizer(flags.vocab_file, flags.do_lower_case, config)
    model = load_model(newest.path, config)
    step = int(os.path.basename(newest.path).removeprefix("step-"))
    save_model(
        config, dict(model.named_parameters()), folder, tokenizer,
        lambda folder: write_export_card(folder, flags.output_dir, config, vars(flags), step),
    )  # fmt: skip
    print(f"{folder}: the model of {newest.path}")
