"""To import this loads the kernels of the scripts into memory: tests/script_server.py does so."""

import contextlib
import io
import tempfile
from pathlib import Path

import create_pretraining_data
import inspect_tfrecord
import verify_dataset
from bert.verification import file_report
from bert.verification.example_check import make_rules

ROOT = Path(__file__).resolve().parent.parent

with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    text, records, vocab = Path(folder, "text"), f"{folder}/records", str(ROOT / "vocab.txt")
    text.write_text("One is one.\nTwo is two.\n\nThree is three.\nFour is four.\n")
    create_pretraining_data.main(
        [f"--input_file={text}", f"--output_file={records}", f"--vocab_file={vocab}"]
    )
    inspect_tfrecord.main([records, f"--vocab_file={vocab}", "--stats"])
    rules = make_rules(128, 20, 0.15, verify_dataset.load_vocab(vocab))
    assert file_report.inspect_tfrecord(records, rules).problems == []
