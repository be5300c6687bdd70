"""The model card beside each model: read by the hub's own parser, true to the run, safe to
publish.
"""

import json
import math
import re

import pytest
from conftest import ROOT
from huggingface_hub import ModelCard

from bert.common.files import DataError
from bert.training.model import load_config
from bert.training.model_card import add_section, card_text, write_card, write_export_card
from tests.training_runs import evaluations_of, train_here

EVALUATION = {
    "step": 20, "masked_lm_accuracy": 0.138217, "masked_lm_loss": 6.8198, "mask_accuracy": 0.0861,
    "mask_baseline": 0.0513, "next_sentence_accuracy": 0.712, "next_sentence_baseline": 0.503,
    "next_sentence_loss": 0.58, "examples": 1000,
}  # fmt: skip
STEP = {"loss": 7.1, "mlm_loss": 6.5, "nsp_loss": 0.6, "mlm_accuracy": 0.1, "grad_norm": 1.0}
FLAGS = {
    "bert_config_file": "/secret/tiny.json", "output_dir": "/secret/run", "do_lower_case": True,
    "init_checkpoint": None, "tfrecord_train": "/secret/data", "vocab_file": "/secret/vocab.txt",
    "train_batch_size": 32, "learning_rate": 0.01, "optimizer": "lamb", "target_accuracy": None,
    "num_train_steps": 30, "export": False,
}  # fmt: skip
DATA = {
    "train": {"records": 59_000, "files": 6}, "eval": {"records": 1000, "files": 1},
    "max_seq_length": 128, "max_predictions_per_seq": 20,
}  # fmt: skip


@pytest.fixture
def config():
    return load_config(ROOT / "configs/bert_tiny.json")


@pytest.fixture
def run(tmp_path):
    """The output folder of a run that has passed step 20 and is writing step 25."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "flags.json").write_text(
        json.dumps({"flags": FLAGS, "bert_config": {}, "data": DATA})
    )
    rows = [STEP | {"step": step} for step in range(1, 25)]
    rows.insert(20, EVALUATION)
    rows.append(EVALUATION | {"step": 24, "masked_lm_accuracy": 0.9})
    metrics = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(metrics + '{"step": 25, "lo')
    return folder


def test_card_of_a_checkpoint(run, config):
    write_export_card(str(run / "model"), str(run), config, {}, 20)
    card = ModelCard.load(run / "model/README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "fill-mask"
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        "Masked LM, all predictions": 0.1382,
        "Masked LM, where [MASK] is shown": 0.0861,
        "Next sentence": 0.712,
    }
    assert "| Masked LM, where [MASK] is shown | 0.0861 | 0.0513 |" in card.text
    assert "4,433,468 parameters" in card.text and "Trained from random weights." in card.text
    assert "59,000 for training in 6 files, 1,000 for evaluation; 128 positions" in card.text
    assert "20 steps of 32 examples, 640 in all, with LAMB" in card.text
    assert "\n--train_batch_size=32\n" in card.text
    assert "/secret" not in card.content and "None" not in card.content
    assert "](curves.png)\n\n## Data\n" in card.text
    assert (run / "model/curves.png").read_bytes().startswith(b"\x89PNG")


def test_accuracies_of_another_step_are_no_result_of_the_model(run, config):
    write_export_card(str(run / "model"), str(run), config, {}, 23)
    card = ModelCard.load(run / "model/README.md")
    assert card.data.eval_results is None
    assert "after 20 steps:" in card.text and "23 steps of 32 examples" in card.text


def test_card_of_a_checkpoint_alone(tmp_path, config):
    """The other files of its run are gone."""
    flags = FLAGS | {"init_checkpoint": "/secret/model.ckpt-28252", "do_lower_case": False}
    write_export_card(str(tmp_path), str(tmp_path / "no run"), config, flags, 20)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None
    assert "It was not evaluated." in card.text and "(cased," in card.text
    assert "from the weights of `model.ckpt-28252`" in card.text
    assert "/secret" not in card.content


@pytest.mark.parametrize("value", [None, math.nan])  # as metrics.jsonl has it, and as computed
def test_evaluation_that_is_not_finite(config, value):
    evaluation = EVALUATION | {"masked_lm_loss": value, "mask_accuracy": value}
    text = card_text(config, {"flags": FLAGS, "data": {}}, 20, evaluation)
    assert "Masked LM loss: not finite." in text
    assert "where [MASK] is shown" not in text and "nan" not in text


def test_flags_that_cannot_be_read(run, config):
    (run / "flags.json").write_text("{")
    with pytest.raises(DataError, match=r"flags.json: not the flags of a run"):
        write_export_card(str(run / "model"), str(run), config, {}, 20)


def test_sections(run, config):
    write_card(str(run), config, {"flags": FLAGS, "data": DATA}, 20, EVALUATION)
    before = (run / "README.md").read_text()
    add_section(str(run), "Hidden words", "| a | b |\n")
    add_section(str(run), "Another", "More.")
    add_section(str(run), "Hidden words", "| c | d |")
    added = "## Another\n\nMore.\n\n## Hidden words\n\n| c | d |\n\n## Data\n"
    assert (run / "README.md").read_text() == before.replace("## Data\n", added)

    with pytest.raises(DataError, match="no model card"):
        add_section(str(run / "model"), "Hidden words", "")
    (run / "README.md").write_text("# Another card\n")
    with pytest.raises(DataError, match="it has no line '## Data'"):
        add_section(str(run), "Hidden words", "")


@pytest.mark.slow
def test_every_model_has_a_card(training_data, tmp_path):
    run = tmp_path / "run"
    train_here(training_data, run, "--eval_every_samples=16", draws=True)
    train_here(training_data, run, "--export", draws=True)
    evaluations = {row["step"]: row for row in evaluations_of(run)}
    best = max(evaluations.values(), key=lambda row: row["masked_lm_accuracy"])
    for name, row in {"model": evaluations[4], "best": best, "export": evaluations[4]}.items():
        card = ModelCard.load(run / name / "README.md")
        assert card.data.eval_results[0].metric_value == round(row["masked_lm_accuracy"], 4)
        assert f"after {row['step']} steps:" in card.text
        assert card.text.count("](curves.png)") == 1
        assert (run / name / "curves.png").stat().st_size > 10_000
        assert str(tmp_path) not in card.content and str(training_data) not in card.content
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL).group(1)
    assert len(code.splitlines()) == 3
    variables = {}
    exec(code.replace("path/to/this/folder", str(run / "export")), variables)
    assert len(variables["fill_mask"]("Paris is the [MASK] of France.")) == 5
