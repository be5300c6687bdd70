"""create_pretraining_data.py: the recorded digests of MLPerf's generator, and inputs that must be
refused.
"""

import json
import os
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from conftest import (
    DATA,
    MLPERF,
    ROOT,
    UNICODE_TEXT,
    WIKIPEDIA,
    assert_refused,
    create,
    run_code,
    run_script,
    tensorflow_digest,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import create_pretraining_data
from bert.generation import instances, part, wordpiece
from tests.reference import create_pretraining_data as reference
from tokenization import FullTokenizer

MLPERF_FLAGS = (
    "--max_seq_length=512",
    "--max_predictions_per_seq=76",
    "--masked_lm_prob=0.15",
    "--random_seed=12345",
    "--dupe_factor=10",
)

RECORDED = json.loads((MLPERF / "pretraining_data.json").read_text())["create_pretraining_data"]


@pytest.mark.parametrize("case", RECORDED, ids=[case["name"] for case in RECORDED])
def test_recorded_digests(case, tmp_path):
    inputs = [
        next((path for path in (DATA / name, WIKIPEDIA / name) if path.exists()), None)
        for name in case["input_file"]
    ]
    if None in inputs:
        pytest.skip("the recorded Wikipedia texts are not beside this checkout")
    outputs = [tmp_path / f"out.{n}" for n in range(len(case["output_file"]))]
    create(",".join(map(str, inputs)), ",".join(map(str, outputs)), *case["flags"].split())
    for output, expected in zip(outputs, case["output_file"]):
        assert tensorflow_digest(output) == expected
        assert output.stat().st_size == expected["bytes"]
    assert sorted(os.listdir(tmp_path)) == [output.name for output in outputs]


def test_several_files_are_one_corpus_and_outputs_take_turns(tmp_path):
    lines = UNICODE_TEXT.read_bytes().splitlines(keepends=True)
    halves = [tmp_path / "half-0", tmp_path / "half-1"]
    halves[0].write_bytes(b"".join(lines[:60]))  # in the middle of a document
    halves[1].write_bytes(b"".join(lines[60:]))
    whole = tmp_path / "whole"
    create(UNICODE_TEXT, whole, "--dupe_factor=2")
    turns = [tmp_path / f"turn-{n}" for n in range(3)]
    create(f"{halves[0]},{tmp_path}/half-1*", ",".join(map(str, turns)), "--dupe_factor=2")
    from bert.examples.tfrecord import TFRecordFile

    def payloads(path):
        with TFRecordFile(path) as records:
            return [records.payload(*extent) for extent in records.extents()]

    expected, found = payloads(whole), [payloads(path) for path in turns]
    assert len(expected) > 100
    assert [found[n % 3][n // 3] for n in range(len(expected))] == expected


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"foo\rbar\r\n", ["foobar"]),  # every \r goes, wherever it stands
        # Only \n ends a line.
        (b"a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e\n", ["a\x0bb\x0cc\x85d\u2028e"]),
        (b" \t\xc2\xa0\n x \nlast", ["", "x", "last"]),
        (b"\xc3\r\xa9\n", ["\xe9"]),  # dropped before decoding
    ],
)
def test_lines(tmp_path, data, expected):
    (tmp_path / "text").write_bytes(data)
    assert list(reference.read_lines(tmp_path / "text")) == expected
    # The same text by the fast path: sentences of the lines that are not blank.
    corpus, _ = part.read_corpus([tmp_path / "text"], FullTokenizer(ROOT / "vocab.txt"))
    tokenizer = FullTokenizer(ROOT / "vocab.txt")
    lines = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(line)) for line in expected if line]
    assert np.split(corpus.tokens, corpus.sentence_starts[1:-1])[0].tolist() == lines[0]
    assert len(corpus.sentence_starts) - 1 == len(lines)


def test_line_of_controls_neither_ends_a_document_nor_adds_a_sentence(tmp_path):
    (tmp_path / "text").write_bytes(b"\n\none\n\x01\ntwo\n\n \n\nthree")
    corpus, _ = part.read_corpus([tmp_path / "text"], FullTokenizer(ROOT / "vocab.txt"))
    assert corpus.document_starts.tolist() == [0, 2, 3]
    assert (
        len(reference.read_documents([tmp_path / "text"], FullTokenizer(ROOT / "vocab.txt"))) == 2
    )


class TestRefusals:
    """Each leaves nothing behind."""

    @pytest.fixture(autouse=True)
    def nothing_left(self, tmp_path):
        yield
        assert [name for name in os.listdir(tmp_path) if name.startswith((".", "out"))] == []

    def test_everything_wrong_is_reported_at_once(self, tmp_path):
        (tmp_path / "vocab").write_text("[CLS]\n[UNK]\n")
        process = run_script(
            "create_pretraining_data.py", f"--input_file={tmp_path}/absent-*",
            f"--output_file={tmp_path}/out", f"--vocab_file={tmp_path}/vocab", "--max_seq_length=4",
            "--dupe_factor=0", "--masked_lm_prob=15", check=False,
        )  # fmt: skip
        assert_refused(
            process,
            "absent-*",
            "[SEP] [MASK]",
            "--max_seq_length=4",
            "--dupe_factor=0",
            "--masked_lm_prob=15.0",
        )

    @pytest.mark.parametrize(
        "text, message",
        [
            ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            ("<!DOCTYPE html>\n<p>gone", "a web page"),
        ],
    )
    def test_what_is_no_text(self, tmp_path, text, message):
        (tmp_path / "text").write_text(text)
        assert_refused(
            create(tmp_path / "text", tmp_path / "out", check=False), tmp_path / "text", message
        )
        assert not (tmp_path / "out").exists()

    def test_bad_utf8_names_file_line_and_byte(self, tmp_path):
        (tmp_path / "text").write_bytes(b"fine\n\rso\r \r\xffbad\n")
        process = create(tmp_path / "text", tmp_path / "out", check=False)
        assert_refused(process, tmp_path / "text", "line 2", "byte 11", "0xff")

    @given(st.lists(st.one_of(st.binary(max_size=5), st.text(max_size=3).map(str.encode))))
    def test_bad_utf8_is_where_python_finds_it(self, parts):
        text = b"\n".join(parts)
        with mock.patch.object(part, "_BLOCK_BYTES", 3):
            found = part._first_bad_byte(text)
        try:
            text.decode()
            assert found is None
        except UnicodeDecodeError as error:
            assert found == error.start

    def test_no_text(self, tmp_path):
        (tmp_path / "text").write_bytes(b"\n \n\x01\n")
        assert_refused(
            create(tmp_path / "text", tmp_path / "out", check=False), tmp_path / "text", "no text"
        )

    def test_output_over_input(self, tmp_path):
        (tmp_path / "text").write_bytes(b"words\n")
        process = create(tmp_path / "text", f"{tmp_path}/./text", check=False)
        assert_refused(process, "would overwrite")
        assert (tmp_path / "text").read_bytes() == b"words\n"

    def test_same_output_twice(self, tmp_path):
        assert_refused(
            create(UNICODE_TEXT, f"{tmp_path}/out,{tmp_path}/out", check=False), "would overwrite"
        )

    def test_more_predictions_than_tokens(self, tmp_path):
        process = create(
            UNICODE_TEXT, tmp_path / "out", "--max_predictions_per_seq=129", check=False
        )
        assert_refused(process, "--max_predictions_per_seq=129", "--max_seq_length=128")

    def test_no_folder_to_write_in(self, tmp_path):
        assert_refused(
            create(UNICODE_TEXT, tmp_path / "outer/inner/file", check=False),
            tmp_path / "outer/inner",
            "mkdir -p",
        )

    def test_unknown_flag(self, tmp_path):
        process = create(UNICODE_TEXT, tmp_path / "out", "--max_sequence_length=128", check=False)
        assert_refused(process, "--max_sequence_length")

    def test_vocabulary_is_not_overwritten(self, tmp_path):
        (tmp_path / "vocab").write_bytes((ROOT / "vocab.txt").read_bytes())
        process = run_script(
            "create_pretraining_data.py",
            f"--input_file={UNICODE_TEXT}",
            f"--output_file={tmp_path}/vocab",
            f"--vocab_file={tmp_path}/vocab",
            check=False,
        )
        assert_refused(process, "would overwrite")
        assert (tmp_path / "vocab").read_bytes() == (ROOT / "vocab.txt").read_bytes()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("step", ["writing", "waiting for the disk"])
    def test_ended_while_writing(self, tmp_path, number, step):
        """It sends itself the signal between two blocks, or before the file gets its name."""
        flags = [
            f"--input_file={UNICODE_TEXT}",
            f"--output_file={tmp_path}/out",
            f"--vocab_file={ROOT}/vocab.txt",
        ]
        code = f"""
import os, signal
import create_pretraining_data as c
from bert.common import cli

def end(self, doing):
    if doing.startswith({step!r}):
        print(os.listdir({str(tmp_path)!r}))
        os.kill(os.getpid(), {number:d})

c.ProgressLine.show = end
# A shell starts background jobs with Ctrl-C ignored, and the suite may be one.
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run(lambda: c.main({flags}))
"""
        process = run_code(code)
        assert (process.returncode, process.stderr) == (128 + number, "")
        assert ".tmp" in process.stdout and os.listdir(tmp_path) == []


def test_missing_folder_is_made_if_its_parent_exists(tmp_path):
    create(UNICODE_TEXT, tmp_path / "new/out", "--dupe_factor=1")
    assert os.listdir(tmp_path / "new") == ["out"]


def test_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the full disk."""
    flags = [
        f"--input_file={UNICODE_TEXT}",
        f"--output_file={tmp_path}/out",
        f"--vocab_file={ROOT}/vocab.txt",
    ]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    code = (
        f"{limit}; from bert.common import cli; import create_pretraining_data as c; "
        f"cli.run(lambda: c.main({flags}))"
    )
    process = run_code(code)
    assert_refused(process, "File too large")
    assert os.listdir(tmp_path) == []


def test_importing_does_nothing():
    code = (
        "import sys, create_pretraining_data as c; "
        "print(sorted({'tensorflow', 'torch', 'absl'} & sys.modules.keys()))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, "--unknown"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (process.stdout, process.stderr) == ("[]\n", "")


# --------------------------------------------------------------------------------------------------
# The fast program against its reference implementation

words = st.sampled_from(
    "a b the of unaffable Na\u00efve \u4e2d\u56fd \u03a3\u03a3 caf\u00e9. it's ###x [MASK] "
    "12,5 \x01 \u00ad".split(" ")
)  # fmt: skip
lines = st.lists(words, max_size=12).map(" ".join)
texts = (
    st.lists(st.lists(lines, min_size=1, max_size=6).map("\n".join), min_size=1, max_size=8)
    .map("\n\n".join)
    .map(lambda text: text + "\nword")
)


@st.composite
def flag_sets(draw):
    max_seq_length = draw(st.one_of(st.integers(5, 40), st.sampled_from([128, 1024])))
    return [
        f"--max_seq_length={max_seq_length}",
        f"--max_predictions_per_seq={draw(st.integers(1, max_seq_length))}",
        f"--masked_lm_prob={draw(st.sampled_from([0.0, 0.15, 0.5, 1.0]))}",
        f"--short_seq_prob={draw(st.sampled_from([0.0, 0.1, 1.0]))}",
        f"--dupe_factor={draw(st.integers(1, 3))}",
        f"--random_seed={draw(st.integers(0, 2**70))}",
        f"--do_lower_case={draw(st.booleans())}",
    ]


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A folder with a vocabulary that is read and compiled in little time: a tenth."""
    folder = tmp_path_factory.mktemp("twins")
    lines = (ROOT / "vocab.txt").read_bytes().splitlines(keepends=True)
    (folder / "vocab").write_bytes(b"".join(lines[:3000]))
    return folder


@settings(max_examples=150)
@given(text=texts, flags=flag_sets())
def test_equals_the_reference_byte_for_byte(twins, text, flags):
    folder = twins
    (folder / "text").write_text(text, newline="")
    files = [f"--input_file={folder}/text", f"--vocab_file={folder}/vocab"]
    reference.main([*files, f"--output_file={folder}/reference", *flags])
    create_pretraining_data.main([*files, f"--output_file={folder}/fast", *flags])
    assert (folder / "fast").read_bytes() == (folder / "reference").read_bytes()


def test_several_outputs_equal_the_reference(tmp_path):
    flags = [f"--input_file={UNICODE_TEXT}", f"--vocab_file={ROOT}/vocab.txt", "--dupe_factor=2"]
    reference.main([*flags, f"--output_file={tmp_path}/0,{tmp_path}/1"])
    run_script("create_pretraining_data.py", *flags, f"--output_file={tmp_path}/a,{tmp_path}/b")
    for slow, fast in ("0a", "1b"):
        assert (tmp_path / fast).read_bytes() == (tmp_path / slow).read_bytes()


def test_room_for_instances_grows(monkeypatch):
    """Short sentences make far more instances than full sequences would."""
    corpus = wordpiece.Corpus(
        np.arange(5000, dtype=np.uint16), np.arange(5001), np.array([0, 10, 4000, 5000])
    )
    sizes = []
    monkeypatch.setattr(
        instances,
        "_with_room",
        lambda *args, real=instances._with_room: sizes.append(1) or real(*args),
    )
    rows, _, changes = instances.make_instances(
        corpus, {"[MASK]": 103, "x": 1}, instances.new_generator(1), max_seq_length=300,
        max_predictions_per_seq=40, masked_lm_prob=0.15, short_seq_prob=1.0, dupe_factor=3,
    )  # fmt: skip
    assert sizes and rows["num_changes"].sum() == len(changes) and (rows["num_changes"] > 0).all()


def test_memory_does_not_grow_with_dupe_factor_times_record_size(tmp_path):
    def peak_megabytes(dupe_factor):
        flags = [
            f"--input_file={tmp_path}/text",
            f"--output_file={tmp_path}/out",
            f"--vocab_file={ROOT}/vocab.txt",
            f"--dupe_factor={dupe_factor}",
        ]
        code = (
            f"import resource, create_pretraining_data; create_pretraining_data.main({flags});"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        process = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return int(process.stdout.split()[-1]) / 1000

    (tmp_path / "text").write_bytes((UNICODE_TEXT.read_bytes() + b"\n\n") * 40)
    grown = peak_megabytes(20) - peak_megabytes(1)
    assert (tmp_path / "out").stat().st_size > 3e6
    size_of_20 = 20 * (tmp_path / "out").stat().st_size / 1e6
    assert grown < size_of_20 / 3
