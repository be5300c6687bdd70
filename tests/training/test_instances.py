"""train.py from instance files: the run that the TFRecord files of the same texts give."""

import os

import numpy as np
import pytest
from conftest import assert_refused, create_train_and_eval
from training_runs import (
    evaluations_of,
    losses,
    steps_of,
    train_here,
    train_several,
    weights,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def instances(training_data, tmp_path_factory):
    """Flags that give the files of `training_data` as instance files, and their folder."""
    folder = tmp_path_factory.mktemp("instances")
    create_train_and_eval(folder, training_data / "vocab.txt", "--output_format=instances")
    return folder


def flags_of(folder):
    return (f"--tfrecord_train={folder}/train", "--idx_train=",
            f"--tfrecord_eval={folder}/eval", "--idx_eval=")  # fmt: skip


def test_same_run_on_either_format(training_data, instances, tmp_path):
    """Two steps and the rest, on either format first: losses and weights to the last bit."""
    whole, turned, turned_back = (tmp_path / name for name in ("whole", "turned", "turned_back"))
    train_here(training_data, whole)
    assert len(steps_of(whole)) == 4
    save = "--save_checkpoints_steps=2"
    for run, first, then in (
        (turned, (), flags_of(instances)),
        (turned_back, flags_of(instances), ()),
    ):
        train_here(training_data, run, save, *first)
        for name in ("checkpoints/step-00000004", "model"):
            os.rename(run / name, tmp_path / f"{run.name}-{name.replace('/', '-')}")
        train_here(training_data, run, save, *then)
        assert losses(steps_of(run)) == losses(steps_of(whole))
        assert (
            evaluations_of(run)[-1]["masked_lm_accuracy"]
            == (evaluations_of(whole)[-1]["masked_lm_accuracy"])
        )
        assert weights(run) == weights(whole)
    assert not os.path.exists(turned_back / "idx")


def test_balanced_run_has_the_same_losses(training_data, instances, tmp_path):
    """4 gloo ranks: the same global batches, so the same updates but for rounding."""
    runs = {
        tmp_path / "plain": (*flags_of(instances), "--unpad=True", "--train_batch_size=32"),
        tmp_path / "balanced": (
            *flags_of(instances), "--unpad=True", "--train_batch_size=32", "--balance=True",
        ),
    }  # fmt: skip
    train_several(training_data, runs, 4)
    plain, balanced = (np.array(losses(steps_of(run))) for run in runs)
    assert plain.shape == (4, 3)
    np.testing.assert_allclose(balanced, plain, rtol=1e-6)
    assert (balanced != plain).any(), "the ranks got the same examples"


@pytest.mark.parametrize(
    "more, words",
    [
        (("--idx_train=idx",), ("--idx_train: ", "needs no index; leave the flag out")),
        (("--max_seq_length=64",), ("examples of 32 tokens, but --max_seq_length=64",)),
        (("--vocab_file={folder}/vocab",), ("{folder}/vocab is not the vocabulary of",)),
        (("--tfrecord_train={folder}/mixed",), ("TFRecord files and instance files in one",)),
        (("--tfrecord_train={data}/train", "--balance=True"), ("--balance: ", "make instance")),
    ],
)
def test_refusals(training_data, instances, tmp_path, more, words):
    lines = (training_data / "vocab.txt").read_text().splitlines(keepends=True)
    (tmp_path / "vocab").write_text("".join([*lines[:2000], *lines[2000:][::-1]]))
    (tmp_path / "mixed").mkdir()
    os.symlink(instances / "train/part-00000", tmp_path / "mixed/part-00000")
    os.symlink(training_data / "train/part-00001", tmp_path / "mixed/part-00001")
    fill_in = {"folder": tmp_path, "data": training_data}
    process = train_here(
        training_data, tmp_path / "run", *flags_of(instances),
        *(flag.format(**fill_in) for flag in more), check=False,
    )  # fmt: skip
    assert_refused(process, *(word.format(**fill_in) for word in words))
