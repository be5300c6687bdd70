"""quickstart.sh, the whole pipeline on real Wikipedia, with a short training.

Fetches the excerpt from the package index.
"""

import json
import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT


def quickstart(output, num_train_steps=40):
    settings = {"OUTPUT": str(output), "NUM_TRAIN_STEPS": str(num_train_steps)}
    process = subprocess.run(
        ["./quickstart.sh"], cwd=ROOT, capture_output=True, text=True, env=os.environ | settings
    )
    if "from versions: none" in process.stderr:
        pytest.skip("the package index, which carries the dump excerpt, cannot be reached")
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.slow
def test_whole_pipeline_and_second_call(tmp_path):
    console = quickstart(tmp_path)
    for command in (
        "WikiExtractor",
        "do_gather.py",
        "create_pretraining_shards.py",
        "create_pretraining_data.py",
        "pick_eval_samples.py",
        "make_idx.py",
        "torchrun",
        "inspect_tfrecord.py",
        "fill_mask.py",
    ):
        assert f"{command} " in console
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seconds"].keys() == {"download", "wiki", "examples", "index", "train"}
    assert summary["records"] > 50_000
    before, after = summary["before"], summary["after"]
    assert after["masked_lm_accuracy"] > before["masked_lm_accuracy"]
    assert 0.04 < after["mask_baseline"] < 0.07  # of "the"
    for accuracy in ("mask_accuracy", "next_sentence_accuracy"):
        assert f"{before[accuracy]:8.4f}{after[accuracy]:8.4f}  0." in console
    assert len(re.findall(r"\[MASK\].*    \(\w+\)$", console, re.M)) == 10
    assert "record 2 at byte" in console and "right, of 10 hidden words:" in console
    assert "## Hidden words" in (tmp_path / "run/model/README.md").read_text()
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "results/eval.md5").read_text().split()) == 12

    assert quickstart(tmp_path).count("done before") == 5
    shutil.rmtree(tmp_path / "idx")  # a result that is gone is made again, with all that follows
    again = quickstart(tmp_path, num_train_steps=2)
    assert (
        again.count("done before") == 3
        and again.count("make_idx.py ") == 1
        and again.count("torchrun ") == 1
    )
    assert json.loads((tmp_path / "summary.json").read_text())["records"] == summary["records"]
    assert (tmp_path / "run.old1/model").is_dir(), "a finished run is kept"


@pytest.mark.parametrize("name", ["mine", "mine/tfrecord/part-00000-of-00500"])
def test_what_is_not_its_own_is_left_alone(tmp_path, name):
    part = tmp_path / "mine/tfrecord/part-00000-of-00500"
    part.parent.mkdir(parents=True)
    part.write_text("391 GB")
    process = subprocess.run(
        [ROOT / "quickstart.sh"], capture_output=True, text=True,
        env=os.environ | {"OUTPUT": str(tmp_path / name)},
    )  # fmt: skip
    assert process.returncode == 2 and part.read_text() == "391 GB"
    assert process.stderr == (
        f"error: OUTPUT={tmp_path / name}: it holds something else than a quick start; "
        "give a new name or an empty folder\n"
    )


def test_verify_dataset_names_the_shape_of_its_examples():
    script, other = ((ROOT / name).read_text() for name in ("quickstart.sh", "verify_dataset.py"))
    lengths = (re.search(rf"^{name}=(.+)$", script, re.M)[1]
               for name in ("seq_length", "max_predictions"))  # fmt: skip
    assert "--max_seq_length={} --max_predictions_per_seq={}\n".format(*lengths) in other


@pytest.mark.parametrize(
    "arguments, settings, code, words",
    [
        (["--help"], {}, 0, "NUM_TRAIN_STEPS=<n> for a longer or shorter training"),
        (["--steps=5"], {}, 2, "--steps=5: no such argument"),
        ([], {"NUM_TRAIN_STEPS": "abc"}, 2, "NUM_TRAIN_STEPS=abc: expected a number of steps"),
        ([], {"NUM_TRAIN_STEPS": "0"}, 2, "NUM_TRAIN_STEPS=0: expected a number of steps"),
    ],
)
def test_what_is_typed_is_checked_first(tmp_path, arguments, settings, code, words):
    process = subprocess.run(
        [ROOT / "quickstart.sh", *arguments], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | settings | {"OUTPUT": str(tmp_path / "out")},
    )  # fmt: skip
    assert process.returncode == code and words in process.stdout + process.stderr
    assert not (tmp_path / "out").exists()
