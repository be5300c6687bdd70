"""The model card: README.md beside an exported model, for people and for model hubs, made of what
the run has written so far (flags.json, metrics.jsonl).
"""

import json
import os
import re
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from transformers import BertConfig, BertForPreTraining

from bert.common.files import DataError, atomic_writer
from bert.training.flag_checks import FLAGS_OF_A_RANK
from bert.training.metrics import plot_curves, read_metrics

CARD, CURVES = "README.md", "curves.png"
_AFTER_ADDED_SECTIONS = "## Data"  # so these stand behind the accuracies

# Of an evaluation: name, its accuracy, and what the same answer everywhere gives.
_ACCURACIES = (
    ("Masked LM, all predictions", "masked_lm_accuracy", None),
    ("Masked LM, where [MASK] is shown", "mask_accuracy", "mask_baseline"),
    ("Next sentence", "next_sentence_accuracy", "next_sentence_baseline"),
)


def write_card(
    folder: str, output_dir: str, config: BertConfig, flags: dict[str, Any], step: int
) -> None:
    """Writes the card and the picture of the curves into the folder of a model.

    output_dir: of the run, whose model after `step` updates it is; flags: those of the command,
    where it has no flags.json. DataError if this cannot be read.
    """
    metrics_path = os.path.join(output_dir, "metrics.jsonl")
    rows = read_metrics(metrics_path, step)
    evaluations = [row for row in rows if "masked_lm_accuracy" in row]
    plot_curves(rows, os.path.join(folder, CURVES))
    record = {"data": {}, "flags": flags} | _read_flags(output_dir)
    text = card_text(config, record, step, evaluations[-1] if evaluations else {})
    with open(os.path.join(folder, CARD), "w", encoding="utf-8") as file:
        file.write(text)


def _read_flags(output_dir):
    """Returns the content of flags.json, {} if there is none. Earlier versions wrote no "data"."""
    path = os.path.join(output_dir, "flags.json")
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not the flags of a run: {error}") from None


def add_section(folder: str, title: str, text: str) -> None:
    """Adds a section to the card of a model, behind its accuracies, or replaces that of this title.

    text: Markdown without headings. DataError if there is no such card.
    """
    path = os.path.join(folder, CARD)
    try:
        with open(path, encoding="utf-8") as file:
            card = file.read()
    except OSError as error:
        raise DataError(f"{path}: no model card: {error}") from None
    card = re.sub(rf"^## {re.escape(title)}\n.*?(?=^## )", "", card, flags=re.M | re.S)
    before, heading, after = card.partition(f"\n{_AFTER_ADDED_SECTIONS}\n")
    if not heading:
        raise DataError(
            f"{path}: no model card of train.py: it has no line {_AFTER_ADDED_SECTIONS!r}"
        )
    with atomic_writer(path) as file:
        file.write(f"{before}\n## {title}\n\n{text.strip()}\n{heading}{after}".encode())


def card_text(
    config: BertConfig, record: dict[str, Any], step: int, evaluation: dict[str, Any]
) -> str:
    """Returns the card. record: content of flags.json; evaluation: a row of metrics.jsonl, or {}
    if there was none.
    """
    flags, data = record["flags"], record["data"]
    name = f"bert-{config.num_hidden_layers}x{config.hidden_size}"
    return f"""---
{_front_matter(name, evaluation)}
---

# BERT, {_shape(config)}, pretrained on English text

Hugging Face's `BertForPreTraining`, with its tokenizer ({_tokenizer(config, flags)}): \
{_count_parameters(config):,} parameters, masked LM and next-sentence prediction, positions up to \
{config.max_position_embeddings}. Trained {_start(flags)}.

## Use

```python
from transformers import pipeline
fill_mask = pipeline("fill-mask", model="path/to/this/folder")
print(fill_mask("Paris is the [MASK] of France."))
```

`AutoModel` gives the encoder without heads, `AutoModelForSequenceClassification` and the like one \
to fine-tune.

## Accuracy

{_accuracies(evaluation)}

![Losses and accuracies of the run]({CURVES})

{_AFTER_ADDED_SECTIONS}

{_data(data)}

## Training

{_training(flags, step)}

The flags of `train.py`, without paths:

```text
{_flag_lines(flags)}
```

## Publish

```sh
hf auth login
hf upload YOUR_NAME/{name} path/to/this/folder
```

Before that, choose a licence (`license:` in the first lines of this file), correct `datasets:` if \
the text was another one, and delete this section.

## Limits

It knows written English as its training text has it, with that text's errors and prejudices, and \
nothing since. What it fills in sounds right or frequent; it is no source of facts. Neither task \
makes its sentence vectors good for search: fine-tune them first.
"""


def _front_matter(name, evaluation):
    def result(task, label, metric):
        value = round(evaluation[metric], 4)
        return EvalResult(
            task_type=task, dataset_type="wikipedia", dataset_name="held-out articles",
            metric_type="accuracy", metric_name=label, metric_value=value,
        )  # fmt: skip

    results = [
        result("fill-mask", label, metric)
        for label, metric, _ in _ACCURACIES
        if evaluation.get(metric) is not None
    ]
    return ModelCardData(
        language="en", library_name="transformers", pipeline_tag="fill-mask",
        tags=["bert", "pretraining", "masked-lm", "next-sentence-prediction"],
        datasets=["wikipedia"], model_name=name, eval_results=results or None,
    ).to_yaml()  # fmt: skip


def _shape(config):
    return (
        f"{config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.num_attention_heads} heads"
    )


def _tokenizer(config, flags):
    case = "uncased" if flags["do_lower_case"] else "cased"
    return f"{case}, {config.vocab_size:,} pieces"


def _count_parameters(config):
    with torch.device("meta"):
        return sum(weight.numel() for weight in BertForPreTraining(config).parameters())


def _start(flags):
    if not (start := flags["init_checkpoint"]):
        return "from random weights"
    return f"from the weights of `{os.path.basename(start.rstrip('/'))}`"


def _accuracies(evaluation):
    rows = [
        (label, evaluation[metric], evaluation.get(baseline))
        for label, metric, baseline in _ACCURACIES
        if evaluation.get(metric) is not None
    ]
    if not rows:
        return "It was not evaluated."
    lines = [
        f"| {label} | {value:.4f} | {'' if baseline is None else f'{baseline:.4f}'} |"
        for label, value, baseline in rows
    ]
    loss = evaluation["masked_lm_loss"]  # None if it was not finite
    return f"""On {evaluation["examples"]:,} examples of held-out text, after \
{evaluation["step"]:,} steps:

| | accuracy | the same answer everywhere |
|---|---|---|
{chr(10).join(lines)}

One of ten predictions shows the right token unchanged, one a random one, the others [MASK]. \
Masked LM loss: {"not finite" if loss is None else f"{loss:.4f} nats"}."""


def _data(data):
    how = (
        "Examples as MLPerf's BERT benchmark makes them of English Wikipedia "
        "(`create_pretraining_data.py`): sentence pairs, half of them with a random second part, "
        "and hidden tokens to be predicted."
    )
    if not data:
        return how
    return (
        f"{how} {data['train']['records']:,} for training in {data['train']['files']:,} files, "
        f"{data['eval']['records']:,} for evaluation; {data['max_seq_length']} positions each, "
        f"at most {data['max_predictions_per_seq']} of them to be predicted."
    )


def _training(flags, step):
    batch = flags["train_batch_size"]
    return (
        f"{step:,} steps of {batch:,} examples, {step * batch:,} in all, with "
        f"{ {'lamb': 'LAMB', 'adamw': 'AdamW'}[flags['optimizer']] } and a peak learning rate of "
        f"{flags['learning_rate']:g}; by `train.py`, with ColossalAI."
    )


def _flag_lines(flags):
    """The flags that shape a run, as a user types them."""
    left_out = FLAGS_OF_A_RANK | {"export", "dry_run"}
    return "\n".join(
        f"--{name}={value}"
        for name, value in flags.items()
        if value is not None and name not in left_out
    )
