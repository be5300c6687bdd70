"""The model card: README.md beside an exported model, for people and for model hubs."""

import math
import os
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import BertConfig

from bert.common.files import DataError, atomic_writer
from bert.training.cost import num_parameters
from bert.training.flags_file import FLAGS_OF_A_RANK, flags_path, read_record
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
    folder: str, config: BertConfig, record: dict[str, Any], step: int, evaluation: dict[str, Any]
) -> None:
    """Writes the card of a model into its folder; see `card_text`."""
    with open(os.path.join(folder, CARD), "w", encoding="utf-8") as file:
        file.write(card_text(config, record, step, evaluation))


def write_export_card(
    folder: str, output_dir: str, config: BertConfig, flags: dict[str, Any], step: int
) -> None:
    """Writes the card and the curves of a model that a checkpoint of a run holds.

    output_dir: of the run; flags: those of the command, where it has no flags.json. DataError if
    this cannot be read.
    """
    record = {"data": {}, "flags": flags}
    if os.path.exists(flags_path(output_dir)):
        record = read_record(output_dir)
    rows = read_metrics(os.path.join(output_dir, "metrics.jsonl"), step)
    write_card(folder, config, record, step, last_evaluation(rows))
    plot_curves(rows, os.path.join(folder, CURVES))
    _show_curves(folder)


def last_evaluation(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the last row of an evaluation among rows of metrics.jsonl, {} if there is none."""
    return next((row for row in reversed(rows) if "masked_lm_accuracy" in row), {})


def add_curves(folder: str, png_path: str) -> None:
    """Copies the picture of the curves into the folder of a model, and shows it in the card."""
    with open(png_path, "rb") as picture, atomic_writer(os.path.join(folder, CURVES)) as copy:
        copy.write(picture.read())
    _show_curves(folder)


def _show_curves(folder):
    add_section(folder, "Curves", f"![Losses and accuracies of the run]({CURVES})")


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
    """Returns the card of a model after `step` updates.

    record: content of flags.json ("flags", "data"); evaluation: a row of metrics.jsonl, or {} if
    there was none.
    """
    flags, data = record["flags"], record["data"]
    name = f"bert-{config.num_hidden_layers}x{config.hidden_size}"
    return f"""---
{_front_matter(name, evaluation if evaluation.get("step") == step else {})}
---

# BERT, {_shape(config)}, pretrained on English text

Hugging Face's `BertForPreTraining`, with its tokenizer ({_tokenizer(config, flags)}): \
{num_parameters(config):,} parameters, masked LM and next-sentence prediction, positions up to \
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

{_accuracy_section(evaluation)}

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

Before that, add `license: <yours>` to the first lines of this file, correct `datasets:` if \
the text was another one, and delete this section.

## Limits

It knows written English as its training text has it, with that text's errors and prejudices, and \
nothing since. What it fills in sounds right or frequent; it is no source of facts. Neither task \
makes its sentence vectors good for search: fine-tune them first.
"""


def _front_matter(name, evaluation):
    results = [
        EvalResult(
            task_type="fill-mask", dataset_type="wikipedia", dataset_name="held-out articles",
            metric_type="accuracy", metric_name=label, metric_value=round(value, 4),
        )
        for label, value, _ in _accuracies(evaluation)
    ]  # fmt: skip
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


def _start(flags):
    if not (start := flags["init_checkpoint"]):
        return "from random weights"
    return f"from the weights of `{os.path.basename(start.rstrip('/'))}`"


def _accuracies(evaluation):
    """Returns [(label, accuracy, baseline or None)]; what was not finite is left out."""
    return [
        (label, accuracy, _number(evaluation, baseline))
        for label, metric, baseline in _ACCURACIES
        if (accuracy := _number(evaluation, metric)) is not None
    ]


def _number(evaluation, metric):
    value = evaluation.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _accuracy_section(evaluation):
    if not evaluation:
        return "It was not evaluated."
    lines = [
        f"| {label} | {value:.4f} | {'' if baseline is None else f'{baseline:.4f}'} |"
        for label, value, baseline in _accuracies(evaluation)
    ]
    loss = _number(evaluation, "masked_lm_loss")
    return f"""On {evaluation["examples"]:,} examples of held-out text, after \
{evaluation["step"]:,} steps:

| | accuracy | a constant answer |
|---|---|---|
{chr(10).join(lines)}

One of ten predictions shows the right token unchanged, one a random one, the others [MASK]. \
Masked LM loss: {"not finite" if loss is None else f"{loss:.4f} nats"}."""


def _data(data):
    how = (
        "Examples as MLPerf's BERT benchmark makes them of English Wikipedia "
        "(`create_pretraining_data.py`): pairs of which the second part follows the first or comes "
        "from elsewhere, and hidden tokens to be predicted."
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
