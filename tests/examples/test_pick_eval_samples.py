"""pick_eval_samples.py: which records, copied as they are, checked, in constant memory."""

import json
import os
import subprocess
import sys

import pytest
from conftest import (
    MLPERF,
    ROOT,
    UNICODE_TEXT,
    WIKIPEDIA,
    assert_refused,
    create,
    needs_wikipedia,
    run_script,
    tensorflow_digest,
)

from bert.examples.tfrecord import TFRecordFile, frame


def pick(source, output, number, seq_length=16, predictions=3, **options):
    return run_script(
        "pick_eval_samples.py", f"--input_tfrecord={source}", f"--output_tfrecord={output}",
        f"--num_examples_to_pick={number}", f"--max_seq_length={seq_length}",
        f"--max_predictions_per_seq={predictions}", **options,
    )  # fmt: skip


def payloads(path):
    with TFRecordFile(path) as records:
        return [records.payload(*extent) for extent in records.extents()]


@pytest.mark.parametrize("number", [1, 7, 36, 37, 38, 100])
def test_even_distances(tfrecord_folder, tmp_path, number):
    (source,), _ = tfrecord_folder([37])
    pick(source, tmp_path / "picked", number)
    all_payloads = payloads(source)
    assert payloads(tmp_path / "picked") == [
        all_payloads[int(i * (37 / number))] for i in range(number)
    ]


@needs_wikipedia
def test_recorded_digests(tmp_path):
    recorded = json.loads((MLPERF / "pretraining_data.json").read_text())
    create(
        WIKIPEDIA / "articles.txt",
        tmp_path / "large",
        "--max_seq_length=512",
        "--max_predictions_per_seq=76",
    )
    assert [case["num_examples_to_pick"] for case in recorded["pick_eval_samples"]] == [
        1000,
        6377,
        10000,
    ]
    for case in recorded["pick_eval_samples"]:
        pick(tmp_path / "large", tmp_path / "picked", case["num_examples_to_pick"], 512, 76)
        assert tensorflow_digest(tmp_path / "picked") == {
            key: case[key] for key in ("records", "bytes", "sha256")
        }


def test_memory_does_not_grow_with_the_file(tfrecord_folder, tmp_path):
    def peak_kilobytes(source):
        flags = [
            f"--input_tfrecord={source}",
            f"--output_tfrecord={tmp_path}/picked",
            "--num_examples_to_pick=10",
        ]
        flags += ["--max_seq_length=16", "--max_predictions_per_seq=3"]
        code = (
            f"import resource, pick_eval_samples; pick_eval_samples.main({flags});"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        process = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return int(process.stdout.split()[-1])

    (small,), _ = tfrecord_folder([10])
    large = tmp_path / "large"
    large.write_bytes((tmp_path / small).read_bytes() * 20_000)
    assert large.stat().st_size > 50e6
    assert peak_kilobytes(large) < peak_kilobytes(small) + 4096


@pytest.mark.parametrize("change", ["lengths", "feature", "payload", "truncated"])
def test_refused_records(tfrecord_folder, tmp_path, change):
    (source,), _ = tfrecord_folder([3])
    data = bytearray((tmp_path / source).read_bytes())
    if change == "lengths":
        process = pick(source, tmp_path / "picked", 3, seq_length=17, check=False)
        words = ("record 0 at byte 0", "16 values", "expected 17")
    else:
        if change == "feature":
            data += frame(payloads(source)[0].replace(b"segment_ids", b"segment_idx"))
            words = ("record 3", "missing: segment_ids", "unknown: segment_idx")
        elif change == "payload":
            data[60] ^= 1
            words = ("byte 0", "checksum")
        else:
            data = data[:-5]
            words = (f"byte {2 * len(data + b'12345') // 3}", "the file ends")
        (tmp_path / "corrupt").write_bytes(data)
        process = pick(tmp_path / "corrupt", tmp_path / "picked", 4, check=False)
    assert_refused(process, *words)
    assert not {name for name in os.listdir(tmp_path) if "picked" in name}


def test_refused_flags(tfrecord_folder, tmp_path):
    (source,), _ = tfrecord_folder([3])
    assert_refused(pick(source, source, 2, check=False), "would overwrite")
    assert_refused(
        pick(tmp_path / "absent", tmp_path / "picked", 0, check=False),
        "absent",
        "--num_examples_to_pick=0",
    )


def test_picks_from_generated_examples(tmp_path):
    create(UNICODE_TEXT, tmp_path / "all")
    pick(tmp_path / "all", tmp_path / "picked", 50, 128, 20)
    assert tensorflow_digest(tmp_path / "picked")["records"] == 50
