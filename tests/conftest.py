"""What the tests share: running a script as a user does, TensorFlow as the judge of records,
synthetic records.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from bert.common import cli, quiet_imports  # noqa: F401  before the frameworks
from bert.examples.example import FEATURES
from tests.script_server import script_server

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
MLPERF = DATA / "mlperf"  # recorded results of MLPerf's own programs
# Texts that were recorded from, beside the checkout in development only.
WIKIPEDIA = ROOT.parent / "shared" / "golden" / "input"
UNICODE_TEXT = DATA / "unicode.txt"

with contextlib.suppress(ImportError):  # tests/gpu runs without most packages
    from hypothesis import settings

    # Imports and compilation come within a test's time.
    settings.register_profile("project", deadline=None)
    settings.load_profile("project")
# The tests start some hundred processes. Without files of bytecode each compiles torch's sources
# again: an import of train.py takes 20 s of CPU instead of 9.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# There is a test at work on each core, so a process starts with one thread of torch; a run takes
# all cores that its processes share (bert/training/launch.py). Threads sleep while they wait; else
# those of two runs take the cores from each other: 75 s instead of 22 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
needs_wikipedia = pytest.mark.skipif(
    not WIKIPEDIA.is_dir(), reason="the recorded Wikipedia texts are not beside this checkout"
)


def run_script(name, *flags, check=True, **options):
    """Runs a script at the root; returns the finished process, its output as text."""
    process = script_server("tests.warm_kernels").run(ROOT / name, *flags, **options)
    assert not check or process.returncode == 0, (process.stdout, process.stderr)
    return process


def start_script(name, *flags, **options):
    """Starts one, options: of tests.script_server.ScriptProcess, which is returned."""
    return script_server("tests.warm_kernels").start(ROOT / name, *flags, **options)


def run_code(code):
    """The same with the text of a program that imports scripts."""
    return script_server("tests.warm_kernels").run_code(code)


def assert_refused(process, *words):
    """The script ended with an error that holds all the words, in a sentence and not in a stack
    trace.
    """
    assert process.returncode != 0
    assert "Traceback" not in process.stderr, process.stderr
    for word in words:
        assert str(word) in process.stderr


def create(text_path, output_path, *flags, vocab=ROOT / "vocab.txt", **options):
    return run_script(
        "create_pretraining_data.py", f"--input_file={text_path}", f"--output_file={output_path}",
        f"--vocab_file={vocab}", *flags, **options,
    )  # fmt: skip


def create_train_and_eval(folder, vocab, *flags):
    """Makes two files of examples in train/ and one in eval/; an example has 32 tokens."""
    for name, seed in (("train/part-00000", 12345), ("train/part-00001", 1), ("eval/all", 2)):
        create(
            UNICODE_TEXT, folder / name, "--max_seq_length=32", "--max_predictions_per_seq=5",
            "--dupe_factor=1", f"--random_seed={seed}", *flags, vocab=vocab,
        )  # fmt: skip


def tensorflow_digest(path):
    """Reads a TFRecord file with TensorFlow, all checksums verified; returns its records, bytes and
    sha256.

    The sha256 is over all records in order: features sorted by name, `name\\0` and the values as
    little-endian int64 or float32, joined by `\\1`.
    """
    import tensorflow as tf

    digest, records, size, features = hashlib.sha256(), 0, 0, {}
    for payloads in tf.data.TFRecordDataset(str(path)).batch(1000).as_numpy_iterator():
        if not features:
            for name, feature in tf.train.Example.FromString(payloads[0]).features.feature.items():
                kind = feature.WhichOneof("kind")
                dtype = {"int64_list": tf.int64, "float_list": tf.float32}[kind]
                length = len(getattr(feature, kind).value)
                features[name] = tf.io.FixedLenFeature([length], dtype)
        # An error where a feature is missing or has another type or length; one too many shows in
        # the bytes.
        columns = tf.io.parse_example(payloads, features)
        names = sorted(features)
        for row in zip(*(columns[name].numpy() for name in names)):
            parts = [name.encode() + b"\0" + values.tobytes() for name, values in zip(names, row)]
            digest.update(b"\1".join(parts))
        records += len(payloads)
        size += sum(len(payload) + 16 for payload in payloads)
    return {"records": records, "bytes": size, "sha256": digest.hexdigest()}


# An example for a person to read, and its vocabulary.
PIECES = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "on", "mat", "$"]
THE, CATS, S, SAT, ON, MAT = range(4, 10)
# [CLS] the cat ##s [SEP] sat on the mat [SEP]: "cat" masked, "sat" replaced by "on", "the" of B
# left as it was
EXAMPLE = {
    "input_ids": [1, THE, 3, S, 2, ON, ON, THE, MAT, 2, 0, 0],
    "input_mask": [1] * 10 + [0] * 2,
    "segment_ids": [0] * 5 + [1] * 5 + [0] * 2,
    "masked_lm_positions": [2, 5, 7, 0],
    "masked_lm_ids": [CATS, SAT, THE, 0],
    "masked_lm_weights": [1.0, 1.0, 1.0, 0.0],
    "next_sentence_labels": [1],
}


def synthetic_example(number, seq_length=16, predictions=3, vocab_size=1000):
    """An example that holds its number: input_ids[0]."""
    ids = [number] + [(7 * number + i) % vocab_size for i in range(seq_length - 1)]
    lengths = {"sequence": seq_length, "predictions": predictions, "one": 1}
    values = {feature.name: [0] * lengths[feature.length] for feature in FEATURES}
    values |= {
        "input_ids": ids, "input_mask": [1] * seq_length,
        "masked_lm_positions": list(range(1, predictions + 1)),
        "masked_lm_ids": ids[1 : predictions + 1], "masked_lm_weights": [1.0] * predictions,
        "next_sentence_labels": [number % 2],
    }  # fmt: skip
    return values


@pytest.fixture
def tfrecord_folder(tmp_path):
    """Returns a function that writes files of synthetic examples, numbered throughout, with their
    indexes.

    tfrecord_folder([3, 5]) -> (paths, index paths)
    """
    from bert.examples.tfrecord import frame, write_index
    from tests.reference.example import encode_example

    def make(sizes, **shape):
        paths, number = [], 0
        for n, size in enumerate(sizes):
            path = tmp_path / f"part-{n:05d}"
            records = [
                frame(encode_example(synthetic_example(number + i, **shape))) for i in range(size)
            ]
            path.write_bytes(b"".join(records))
            number += size
            paths.append(str(path))
        index_paths = [f"{path}.idx" for path in paths]
        for pair in zip(paths, index_paths):
            write_index(*pair)
        return paths, index_paths

    return make


def pytest_ignore_collect(collection_path, config):
    """--quick does not import files of slow tests only: several seconds of frameworks, in each
    worker.
    """
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        is_slow = re.search(
            r"^pytestmark = .*pytest\.mark\.slow", collection_path.read_text(), re.M
        )
        return True if is_slow else None
    return None


def pytest_collection_modifyitems(items):
    """The slow files first, so that no worker has one left when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """It imports the tests, and the frameworks with them."""
    with cli.imports_without_garbage_collection():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder_of_processes():
    """torchrun and torch leave folders behind, a few with every run; the name is short for the
    paths of Ray's sockets.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        yield


@pytest.fixture
def process_group(tmp_path_factory):
    """This process alone, over gloo."""
    import torch.distributed as dist

    from bert.training.distributed import control_group

    store = tmp_path_factory.mktemp("process_group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    control_group.cache_clear()


@pytest.fixture(scope="session")
def training_data(tmp_path_factory):
    """A folder with train/, eval/, their indexes in idx/, a small vocab.txt and a small model's
    config.json.
    """
    from tokenization import FullTokenizer

    folder = tmp_path_factory.mktemp("training_data")
    # The first 3,000 tokens of the real vocabulary and those of the text: a run with all 30,522
    # takes 2.7 times the CPU time.
    tokens = (ROOT / "vocab.txt").read_text().splitlines()
    of_text = set(FullTokenizer(ROOT / "vocab.txt").tokenize(UNICODE_TEXT.read_text()))
    tokens = [token for n, token in enumerate(tokens) if n < 3000 or token in of_text]
    assert len(tokens) % 4, "ZeRO on 4 processes is to pad the decoder's bias, as with 30,522"
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    create_train_and_eval(folder, folder / "vocab.txt")
    run_script(
        "make_idx.py",
        f"--tfrecord_train={folder}/train",
        f"--tfrecord_eval={folder}/eval",
        f"--output_idx={folder}/idx",
    )
    config = json.loads((ROOT / "configs" / "bert_tiny.json").read_text())
    config |= {
        "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64,
        "vocab_size": len(tokens),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def dropout_config(training_data):
    """The path of the small model's configuration with dropout."""
    config = json.loads((training_data / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    path = training_data / "dropout.json"
    path.write_text(json.dumps(config))
    return path
