"""verify_dataset.py and what it is made of: every kind of corruption is reported, and whole data
pass.
"""

import hashlib
import json
import random
import struct

import numpy as np
import pytest
from conftest import ROOT, create, run_script
from hypothesis import given
from hypothesis import strategies as st

import verify_dataset
from bert.common.files import DataError
from bert.examples.example import FEATURES, decode_example
from bert.examples.records import have_checksums, read_blocks
from bert.examples.tfrecord import TFRecordFile, frame
from bert.verification import check_table, published, published_checks
from bert.verification.check_table import print_table
from bert.verification.example_check import Totals, check_block, make_rules
from bert.verification.file_report import (
    SKETCH_SIZE,
    TFRecordReport,
    eval_digest,
    inspect_text,
    inspect_tfrecord,
    shared_part,
)
from tests.examples.test_tfrecord import as_tensorflow_example
from tests.reference.example import encode_example
from tests.reference.example_rules import add_to_totals, hash_of, problem_of

SEQ_LENGTH, PREDICTIONS, VOCAB_SIZE = 32, 4, 30522
CLS, SEP, UNK, MASK = 101, 102, 100, 103
RULES = make_rules(
    SEQ_LENGTH,
    PREDICTIONS,
    0.15,
    {"[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNK, "[MASK]": MASK}
    | dict.fromkeys(range(VOCAB_SIZE - 4)),
)
FLAGS = [f"--max_seq_length={SEQ_LENGTH}", f"--max_predictions_per_seq={PREDICTIONS}"]


def valid_example(seed, length=None):
    """An example such as the generator makes."""
    rng = random.Random(seed)
    length = length or rng.choice([5, 9, 20, SEQ_LENGTH, SEQ_LENGTH])
    second = rng.randint(3, length - 2)
    ids = [rng.choice([7, 1000, 20000, 2003]) + rng.randrange(90) for _ in range(length)]
    ids[0], ids[second - 1], ids[-1] = CLS, SEP, SEP
    count = min(PREDICTIONS, max(1, round(length * 0.15)), length - 3)
    positions = sorted(rng.sample([p for p in range(1, length - 1) if p != second - 1], count))
    labels = [ids[p] for p in positions]
    for p in positions:
        ids[p] = MASK
    padding, unused = [0] * (SEQ_LENGTH - length), [0] * (PREDICTIONS - count)
    return {
        "input_ids": ids + padding, "input_mask": [1] * length + padding,
        "segment_ids": [0] * second + [1] * (length - second) + padding,
        "masked_lm_positions": positions + unused, "masked_lm_ids": labels + unused,
        "masked_lm_weights": [1.0] * count + [0.0] * len(unused),
        "next_sentence_labels": [rng.randint(0, 1)],
    }  # fmt: skip


def unusual_encoding(values):
    """The same example as legal protobuf that no usual writer makes: values not packed, features in
    reverse.
    """

    def field(number, content):
        size, out = len(content), bytes([number << 3 | 2])
        while size > 127:
            out += bytes([size & 127 | 128])
            size >>= 7
        return out + bytes([size]) + content

    def varint(value):
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    entries = []
    for feature in reversed(FEATURES):
        column = values[feature.name]
        if feature.dtype == "float32":
            value_list = field(2, b"".join(b"\x0d" + struct.pack("<f", value) for value in column))
        else:
            value_list = field(3, b"".join(b"\x08" + varint(value) for value in column))
        entries.append(field(1, field(1, feature.name.encode()) + field(2, value_list)))
    return field(1, b"".join(entries))


def check_payloads(payloads, rules=RULES, max_problems=100):
    data = np.frombuffer(b"".join(payloads), np.uint8)
    ends = np.cumsum([len(payload) for payload in payloads])
    return check_block(
        data,
        ends - [len(payload) for payload in payloads],
        ends,
        rules,
        "example {}".format,
        max_problems,
    )


def no_slow_path(monkeypatch):
    def refuse(*_):
        raise AssertionError("the kernel passed this example on")

    monkeypatch.setattr("bert.verification.example_check.decode_example", refuse)


# ----------------------------------------------------------------------------- examples, one by one


def test_the_kernel_passes_what_writers_write(monkeypatch):
    examples = [valid_example(seed) for seed in range(300)]
    expected = np.zeros(len(Totals._fields), np.int64)
    decoded = [decode_example(encode_example(example), "") for example in examples]
    for example in decoded:
        add_to_totals(example, RULES, expected)
    no_slow_path(monkeypatch)
    for encode in (
        encode_example,
        lambda values: as_tensorflow_example(values).SerializeToString(),
    ):
        problems, hashes, totals = check_payloads([encode(example) for example in examples])
        assert problems == []
        assert hashes.tolist() == [int(hash_of(example, RULES)) for example in decoded]
        assert len(set(hashes.tolist())) == len(examples)
        assert totals == Totals(*expected)


def test_generated_data_pass_the_kernel(tmp_path, monkeypatch):
    create(
        ROOT / "tests/data/unicode.txt",
        tmp_path / "records",
        "--max_seq_length=64",
        "--max_predictions_per_seq=10",
    )
    vocab = verify_dataset.load_vocab(str(ROOT / "vocab.txt"))
    no_slow_path(monkeypatch)
    report = inspect_tfrecord(str(tmp_path / "records"), make_rules(64, 10, 0.15, vocab))
    assert (
        report.problems == []
        and report.broken_at is None
        and report.num_examples == report.num_records > 100
    )


def test_unusual_encodings_are_the_same_examples():
    examples = [valid_example(seed) for seed in range(20)]
    usual = check_payloads([encode_example(example) for example in examples])
    unusual = check_payloads([unusual_encoding(example) for example in examples])
    assert unusual[0] == [] and unusual[1].tolist() == usual[1].tolist() and unusual[2] == usual[2]


def changed(**changes):
    """A full-length example with values replaced: name={position: value} or name=list."""
    values = valid_example(1, length=20)
    for name, change in changes.items():
        if isinstance(change, dict):
            for position, value in change.items():
                values[name][position] = value
        else:
            values[name] = change
    return values


SECOND = valid_example(1, length=20)["segment_ids"].index(1)
POSITIONS = valid_example(1, length=20)["masked_lm_positions"]
BAD_EXAMPLES = [
    ("features", "input_ids has 33 values, expected 32", changed(input_ids=[CLS] * 33)),
    ("features", "input_mask has 31 values", changed(input_mask=[1] * 31)),
    ("features", "segment_ids has 31 values", changed(segment_ids=[0] * 31)),
    ("features", "masked_lm_positions has 5 values, expected 4",
     changed(masked_lm_positions=[1, 2, 3, 0, 0])),
    ("features", "masked_lm_ids has 3 values", changed(masked_lm_ids=[5, 5, 5])),
    ("features", "masked_lm_weights has 3 values", changed(masked_lm_weights=[1.0] * 3)),
    ("features", "next_sentence_labels has 2 values", changed(next_sentence_labels=[0, 0])),
    ("features", "next_sentence_labels is 2, expected 0 or 1", changed(next_sentence_labels=[2])),
    ("features", "missing: segment_ids, unknown: none",
     {k: v for k, v in changed().items() if k != "segment_ids"}),
    ("features", "missing: none, unknown: another", changed() | {"another": [1]}),
    ("features", "masked_lm_weights holds int64, expected float32",
     changed(masked_lm_weights=[1, 1, 1, 0])),
    ("ids", "input_ids holds 30522, the vocabulary has 30,522 tokens",
     changed(input_ids={5: VOCAB_SIZE})),
    ("ids", "input_ids holds 4000000", changed(input_ids={5: 4_000_000})),
    ("ids", "masked_lm_ids holds 30522", changed(masked_lm_ids={0: VOCAB_SIZE})),
    ("ids", "input_ids is not 0 where input_mask is", changed(input_ids={25: 7})),
    ("ids", "expected [CLS] A [SEP] B [SEP]", changed(input_ids={0: 7})),
    ("ids", "expected [CLS] A [SEP] B [SEP]", changed(input_ids={19: 7})),
    ("ids", "expected [CLS] A [SEP] B [SEP]", changed(input_ids={SECOND - 1: 7})),
    ("ids", "expected [CLS] A [SEP] B [SEP]", changed(segment_ids=[0] * 32)),
    ("masks", "input_mask is not ones followed by zeros", changed(input_mask={3: 0})),
    ("masks", "input_mask is not ones followed by zeros", changed(input_mask={3: 2})),
    ("masks", "segment_ids is not zeros, ones for the second text", changed(segment_ids={19: 0})),
    ("masks", "segment_ids is not zeros, ones for the second text", changed(segment_ids={25: 1})),
    ("masks", "2 of 20 tokens are masked, expected 3", changed(masked_lm_weights={2: 0.0})),
    ("masks", "masked_lm_weights is not 1.0s followed by 0.0s",
     changed(masked_lm_weights={0: 0.5})),
    ("masks", "masked_lm_ids or masked_lm_positions is not 0", changed(masked_lm_ids={3: 5})),
    ("masks", "masked_lm_ids or masked_lm_positions is not 0", changed(masked_lm_positions={3: 9})),
    ("masks", "masked_lm_positions is not ascending",
     changed(masked_lm_positions={0: POSITIONS[1]})),
    ("masks", "masked_lm_positions is not ascending", changed(masked_lm_positions={0: 0})),
    ("masks", "masked_lm_positions is not ascending", changed(masked_lm_positions={2: 19})),
    ("masks", "masked_lm_positions is not ascending",
     changed(masked_lm_positions=[1, SECOND - 1, 18, 0])),
]  # fmt: skip


@pytest.mark.parametrize("kind, text, example", BAD_EXAMPLES)
def test_what_is_wrong_with_an_example_is_reported(kind, text, example):
    good = encode_example(valid_example(2))
    bad = as_tensorflow_example(example).SerializeToString()
    problems, hashes, totals = check_payloads([good, bad, good])
    assert [(problem.number, problem.kind) for problem in problems] == [(1, kind)]
    assert problems[0].text.startswith("example 1: ") and text in problems[0].text
    assert (
        hashes[1] == 0 and hashes[0] == hashes[2] != 0 and totals == check_payloads([good, good])[2]
    )


@pytest.mark.parametrize(
    "kind, text, example", [bad for bad in BAD_EXAMPLES if bad[0] != "features"]
)
def test_unusual_encodings_are_judged_the_same(kind, text, example):
    bad = check_payloads([unusual_encoding(example)])
    assert bad[0] == check_payloads([encode_example(example)])[0] and text in bad[0][0].text


@given(st.integers(0, 10), st.integers(0, 400), st.integers(0, 255))
def test_the_kernel_judges_as_the_reference(seed, place, octet):
    payload = bytearray(encode_example(valid_example(seed)))
    payload[place % len(payload)] = octet
    problems, hashes, totals = check_payloads([bytes(payload)])
    expected, expected_totals = None, np.zeros(len(Totals._fields), np.int64)
    try:
        example = decode_example(bytes(payload), "example 0")
        expected = problem_of(example, RULES, "example 0")
    except DataError as error:
        expected = "features", str(error)
    if expected is None:
        add_to_totals(example, RULES, expected_totals)
        assert problems == [] and hashes[0] == hash_of(example, RULES)
    else:
        assert problems == [(0, *expected)] and hashes[0] == 0
    assert totals == Totals(*expected_totals)


@given(st.integers(0, 10), st.integers(0, 400))
def test_a_cut_example_is_refused(seed, size):
    payload = encode_example(valid_example(seed))
    problems, _, _ = check_payloads([payload[: size % len(payload)], payload])
    assert [(problem.number, problem.kind) for problem in problems] == [(0, "features")]


def test_after_many_problems_the_rest_is_left():
    problems, _, _ = check_payloads([b"no example"] * 50, max_problems=7)
    assert [problem.number for problem in problems] == list(range(7))


# --------------------------------------------------------------------------------- files of records


def write_records(path, seeds, encode=encode_example):
    path.write_bytes(b"".join(frame(encode(valid_example(seed))) for seed in seeds))
    return path


@pytest.mark.parametrize("block_bytes", [12, 1000, 1 << 20])
def test_blocks_are_the_records(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr("bert.examples.records._BLOCK_BYTES", block_bytes)
    path = write_records(tmp_path / "records", range(30))
    with TFRecordFile(path) as records:
        payloads = [records.payload(*extent) for extent in records.extents()]
        blocks = list(read_blocks(records))
        found = [
            block.data[a:b].tobytes() for block in blocks for a, b in zip(block.starts, block.ends)
        ]
    assert found == payloads == [encode_example(valid_example(seed)) for seed in range(30)]
    assert all(have_checksums(block.data, block.starts, block.ends).all() for block in blocks)


@pytest.mark.parametrize("block_bytes", [12, 1000, 1 << 20])
@pytest.mark.parametrize(
    "corrupt, text",
    [
        (lambda data, at: data[: at + 5], "the file ends 5 bytes into a record header of 12"),
        (lambda data, at: data[: at + 50], "the file ends 50 bytes into a record of"),
        (lambda data, at: data[:-1], "bytes into a record of"),
        (
            lambda data, at: data[:at] + b"\1" + data[at + 1 :],
            "no record starts here: the length's checksum is wrong",
        ),
        (lambda data, at: data[: at + 9] + b"\1" + data[at + 10 :], "no record starts here"),
    ],
)
def test_broken_framing_is_reported_with_its_place(
    tmp_path, monkeypatch, block_bytes, corrupt, text
):
    monkeypatch.setattr("bert.examples.records._BLOCK_BYTES", block_bytes)
    path = write_records(tmp_path / "records", range(20))
    with TFRecordFile(path) as records:
        extents = list(records.extents())
    offset = extents[13][0]
    path.write_bytes(corrupt(path.read_bytes(), offset))
    report = inspect_tfrecord(str(path), RULES)
    cut_last = corrupt(b"x" * 20, 3) == b"x" * 19
    assert report.num_records == (19 if cut_last else 13)
    assert (
        f"byte {extents[19][0] if cut_last else offset}: " in report.broken_at
        and text in report.broken_at
    )


def test_corrupt_data_are_reported_and_the_other_records_checked(tmp_path):
    path = write_records(tmp_path / "records", range(20))
    with TFRecordFile(path) as records:
        offset, size = list(records.extents())[13]
    data = bytearray(path.read_bytes())
    data[offset + size - 20] ^= 1  # of the data
    data[-1] ^= 1  # of the last checksum
    path.write_bytes(data)
    report = inspect_tfrecord(str(path), RULES)
    assert (
        report.num_corrupt == 2
        and report.num_records == 20
        and report.num_examples == 18
        and report.problems == []
    )
    assert f"record 13 at byte {offset:,}: its data do not have their checksum" in report.corrupt[0]


def test_shared_part_of_two_files():
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 1 << 63, 30_000).astype(np.uint64)

    def sketch(values):
        return np.unique(values)[:SKETCH_SIZE]

    a, b = sketch(hashes[:20_000]), sketch(hashes[10_000:])
    assert 0.45 < shared_part(a, b) < 0.55
    a, b = sketch(hashes[:15_000]), sketch(hashes[14_550:29_550])  # 3 %
    assert 0.02 < shared_part(a, b) < 0.04
    assert shared_part(sketch(hashes[:4000]), sketch(hashes)) == 1.0
    assert shared_part(sketch(hashes[:1000]), sketch(hashes[1000:2000])) == 0.0
    assert shared_part(sketch(hashes[:3]), sketch(hashes[:3])) == 0.0  # too few to tell


# --------------------------------------------------------------------------------------- whole sets


@pytest.fixture
def tfrecords(tmp_path):
    folder = tmp_path / "tfrecord"
    folder.mkdir()
    for part in range(4):
        write_records(folder / f"part-0000{part}-of-00004", range(100 * part, 100 * part + 100))
    return folder


def verify(capsys, *flags):
    """Runs verify_dataset.py in this process; returns (exit code, JSON, {check: row})."""
    code = verify_dataset.main([*map(str, flags), "--json", "--num_workers=2"])
    result = json.loads(capsys.readouterr().out)
    return code, result, {(row["section"], row["check"]): row for row in result["rows"]}


def failed(rows):
    return {check for (_, check), row in rows.items() if row["status"] == "FAILED"}


def notes(rows):
    return "\n".join(note for row in rows.values() for note in row["notes"])


def test_own_data_that_are_whole(tfrecords, capsys):
    code, result, rows = verify(capsys, f"--tfrecord={tfrecords}", *FLAGS, "--own_data")
    assert (code, result["verdict"], failed(rows)) == (0, "whole", set())
    assert rows["tfrecord", "records"]["found"].startswith("400 in ")


def test_whole_but_not_published(tfrecords, capsys):
    code, result, rows = verify(capsys, f"--tfrecord={tfrecords}", *FLAGS)
    assert (code, result["verdict"], failed(rows)) == (3, "not the published data", set())
    assert (
        rows["published examples", "records"]["found"] == "400"
        and rows["published examples", "vocabulary"]["status"] == "ok"
    )


def test_published_data(tfrecords, capsys, monkeypatch):
    sizes = {path.name: path.stat().st_size for path in tfrecords.iterdir()}
    monkeypatch.setattr(published, "NUM_PARTS", 4)
    monkeypatch.setattr(published, "TFRECORD_BYTES", sum(sizes.values()))
    monkeypatch.setattr(
        published, "TFRECORD_PART_BYTES", {"part-00003-of-00004": sizes["part-00003-of-00004"]}
    )
    monkeypatch.setitem(published.TFRECORD_RECORDS, "NVIDIA", 400)
    code, result, rows = verify(capsys, f"--tfrecord={tfrecords}", *FLAGS)
    assert (code, result["verdict"], result["likely_causes"]) == (0, "as published", [])
    assert rows["published examples", "records"]["found"] == "400 (NVIDIA's count)"


@pytest.mark.parametrize(
    "corrupt, check, text",
    [
        (lambda folder: (folder / "part-00002-of-00004").unlink(),
         "files", "missing: part-00002 (of 4)"),
        (lambda folder: (folder / "eval_10k").write_bytes(
            (folder / "part-00000-of-00004").read_bytes()[:-1]),
         "files", "eval_10k: does not belong here"),
        (lambda folder: (folder / "part-00000-of-00005").write_bytes(
            frame(encode_example(valid_example(999)))),
         "files", "-of-00004, -of-00005"),
        (lambda folder: (folder / "part-00002-of-00004").write_bytes(b""),
         "records", "0 bytes, expected TFRecords"),
        (lambda folder: (folder / "part-00002-of-00004").write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1"),
         "records", "Git LFS pointer"),
        (lambda folder: (folder / "part-00002-of-00004").write_bytes(
            b"<!DOCTYPE html><title>Sign in</title>" * 3),
         "records", "web page"),
        (lambda folder: (folder / "part-00002-of-00004").write_bytes(
            (folder / "part-00001-of-00004").read_bytes()),
         "copies", "the same examples: part-00001-of-00004, part-00002-of-00004"),
        (lambda folder: write_records(folder / "part-00002-of-00004", range(199, 99, -1)),
         "copies", "the same examples: part-00001"),
        (lambda folder: write_records(
            folder / "part-00002-of-00004", range(100, 200), unusual_encoding),
         "copies", "the same examples: part-00001"),
        (lambda folder: write_records(folder / "part-00002-of-00004", range(150, 250)),
         "copies", "share about 50 %"),
        (lambda folder: write_records(folder / "part-00002-of-00004", [*range(200, 250)] * 2),
         "copies", "50 of its 100 examples are repeated"),
    ],
)  # fmt: skip
def test_broken_sets(tfrecords, capsys, corrupt, check, text):
    corrupt(tfrecords)
    code, result, rows = verify(capsys, f"--tfrecord={tfrecords}", *FLAGS, "--own_data")
    assert code == 1 and result["verdict"] == "broken"
    assert check in failed(rows) and text in notes(rows)


def test_a_last_part_that_is_missing(tfrecords, capsys):
    (tfrecords / "part-00003-of-00004").unlink()
    assert verify(capsys, f"--tfrecord={tfrecords}", *FLAGS)[0] == 1
    code, _, rows = verify(capsys, f"--tfrecord={tfrecords}", *FLAGS, "--own_data")
    assert code == 1 and "if there never were more, give the parts by a pattern" in notes(rows)
    assert verify(capsys, f"--tfrecord={tfrecords}/part-*", *FLAGS, "--own_data")[0] == 0
    # 500 is the default of do_gather.py, however many parts it makes.
    for path in tfrecords.iterdir():
        path.rename(f"{str(path)[:-5]}00500")
    code, result, _ = verify(capsys, f"--tfrecord={tfrecords}", *FLAGS, "--own_data")
    assert code == 0 and "last files are missing" in "".join(result["not_checked"])


def test_files_that_the_user_chose_may_have_gaps(tfrecords, capsys):
    assert (
        verify(capsys, f"--tfrecord={tfrecords}/part-00002-of-00004", *FLAGS, "--own_data")[0] == 0
    )
    assert verify(capsys, f"--tfrecord={tfrecords}/part-0000[13]*", *FLAGS, "--own_data")[0] == 0


def test_wrong_flags_of_the_generator_are_reported(tfrecords, capsys):
    code, _, rows = verify(capsys, f"--tfrecord={tfrecords}", "--own_data")
    assert code == 1 and "input_ids has 32 values, expected 512 (--max_seq_length=512" in notes(
        rows
    )
    code, _, rows = verify(
        capsys, f"--tfrecord={tfrecords}", *FLAGS, "--own_data", "--masked_lm_prob=0.3"
    )
    assert failed(rows) == {"masks"} and "another --masked_lm_prob" in notes(rows)
    assert (
        verify(capsys, f"--tfrecord={tfrecords}", *FLAGS, "--own_data", "--masked_lm_prob=0")[0]
        == 0
    )


def test_a_smaller_vocabulary(tfrecords, capsys, tmp_path):
    vocab = tmp_path / "small.txt"
    vocab.write_text(
        "\n".join((ROOT / "vocab.txt").read_text(encoding="utf-8").split("\n")[:20000]),
        encoding="utf-8",
    )
    code, _, rows = verify(
        capsys, f"--tfrecord={tfrecords}", *FLAGS, "--own_data", f"--vocab_file={vocab}"
    )
    assert (
        code == 1 and failed(rows) == {"ids"} and "the vocabulary has 20,000 tokens" in notes(rows)
    )


def test_the_evaluation_set_and_its_digest(tmp_path, capsys, monkeypatch):
    import tensorflow as tf

    path = write_records(tmp_path / "eval_10k", range(50))
    hexes = []
    for payload in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        features = tf.train.Example.FromString(payload).features.feature
        length = sum(features["input_mask"].int64_list.value)
        hexes.append(
            hashlib.md5(
                str(list(features["input_ids"].int64_list.value)[:length]).encode()
            ).hexdigest()
        )
    digest = hashlib.md5(str(hexes).encode()).hexdigest()
    assert eval_digest(path) == digest

    code, _, rows = verify(capsys, f"--eval_10k={path}", *FLAGS)
    assert code == 3 and rows["published evaluation set", "digest of input_ids"]["found"] == digest
    monkeypatch.setattr(published, "EVAL_10K_DIGEST", digest)
    monkeypatch.setattr(published, "EVAL_10K_RECORDS", 50)
    monkeypatch.setattr(published, "EVAL_10K_BYTES", path.stat().st_size)
    assert verify(capsys, f"--eval_10k={path}", *FLAGS)[0] == 0
    write_records(path, [*range(1, 50), 0])
    code, _, rows = verify(capsys, f"--eval_10k={path}", *FLAGS)
    assert code == 3 and "the bytes are right" in notes(rows)
    path.write_bytes(path.read_bytes()[:-1])
    code, _, rows = verify(capsys, f"--eval_10k={path}", *FLAGS)
    assert (
        code == 1
        and rows["published evaluation set", "digest of input_ids"]["found"] == "not computed"
    )


# ----------------------------------------------------------------------------------------- the text


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    for part in range(3):
        (folder / f"part-0000{part}-of-00003").write_text(
            f"\nArticle {part}.\nIt ends \u2026\n\nAnother.\n"
        )
    articles = ["\nOne.", "Two.\nTwo.", "Three.  "]
    (folder / "eval.txt").write_text("".join(article + "\n\n" for article in articles))
    (folder / "eval.md5").write_text(
        "".join(hashlib.md5(article.rstrip().encode()).hexdigest() + "\n" for article in articles)
    )
    return folder


def test_whole_text(results, capsys, monkeypatch):
    assert verify(capsys, f"--results={results}", "--own_data")[0] == 0
    code, _, rows = verify(capsys, f"--results={results}")
    assert code == 3 and failed(rows) == set()
    assert rows["published text", "part-00499-of-00500"]["found"] == "missing"
    digests = {
        path.name: (path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest())
        for path in results.iterdir()
    }
    monkeypatch.setattr(published, "RESULTS", digests)
    assert verify(capsys, f"--results={results}")[0] == 0


@pytest.mark.parametrize(
    "name, content, check, text",
    [
        ("part-00001-of-00003", b"", "whole text", "0 bytes"),
        ("part-00001-of-00003", b"a\nb \xff\n", "whole text", "byte 4 is not UTF-8"),
        ("part-00001-of-00003", b"a\nb", "whole text", "truncated at byte 3"),
        ("part-00001-of-00003", b"version https://git-lfs.github.com/spec/v1\n", "whole text",
         "Git LFS pointer"),
        ("part-00001-of-00003", b"\n<html><body>Quota exceeded\n", "whole text", "web page"),
        ("part-00001-of-00003", b"\x1f\x8b\x08\n", "whole text", "unpack it"),
        ("part-00001-of-00003", "\nArticle 0.\nIt ends \u2026\n\nAnother.\n".encode(), "copies",
         "part-00000-of-00003, part-00001-of-00003"),
        ("part-00001-of-00003", None, "files", "missing: part-00001 (of 3)"),
        ("part-00001-of-00003.1", b"a\n", "files", "part-00001-of-00003.1: does not belong here"),
        ("eval.md5", None, "files", "eval.md5: missing"),
    ],
)  # fmt: skip
def test_broken_text(results, capsys, name, content, check, text):
    (results / name).unlink() if content is None else (results / name).write_bytes(content)
    code, _, rows = verify(capsys, f"--results={results}", "--own_data")
    assert code == 1 and check in failed(rows) and text in notes(rows)


@pytest.mark.parametrize("text", ["\nOne.\n\nTwo.\nTwo!\n\nThree.  \n\n", "\nOne.\n\n"])
def test_eval_txt_and_eval_md5_belong_together(results, capsys, text):
    (results / "eval.txt").write_text(text)
    code, _, rows = verify(capsys, f"--results={results}", "--own_data")
    assert (
        code == 1
        and failed(rows) == {"eval.md5"}
        and "eval.txt" in rows["results", "eval.md5"]["found"]
    )


@pytest.mark.parametrize(
    "articles",
    [
        ["\nOne.", "\n", "\nTwo."],  # as separate_test_set.py takes them of "...\n\n\n"
        ["\n", "\n", "", "\n", "Two.", "\n"],
        ["One.\n", "\nTwo.", "", "\nThree."],
        ["", "", ""],
    ],
)
def test_articles_that_begin_or_end_with_a_line_end(results, capsys, articles):
    def write(articles):
        (results / "eval.txt").write_text("".join(article + "\n\n" for article in articles))

    write(articles)
    (results / "eval.md5").write_text(
        "".join(hashlib.md5(article.rstrip().encode()).hexdigest() + "\n" for article in articles)
    )
    assert verify(capsys, f"--results={results}", "--own_data")[0] == 0
    for others in ([*articles, "More."], articles[:-1], ["Else.", *articles[1:]]):
        write(others)
        code, _, rows = verify(capsys, f"--results={results}", "--own_data")
        assert code == 1 and failed(rows) == {"eval.md5"}


def test_a_character_across_blocks_is_no_error(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"x" * ((1 << 20) - 1) + "\u2026".encode() + b"\xff\n")
    assert f"byte {(1 << 20) + 2:,} is not UTF-8" in inspect_text(path).problem


def test_md5_list(results, capsys, tmp_path):
    listed = tmp_path / "md5.txt"
    names = sorted(path.name for path in results.iterdir())
    lines = [
        f"{hashlib.md5((results / name).read_bytes()).hexdigest()}  ./results4/{name}"
        for name in names
    ]
    listed.write_text("\n".join(lines) + "\n")
    assert verify(capsys, f"--results={results}", "--own_data", f"--md5_list={listed}")[0] == 0
    # As md5sum wrote it elsewhere: upper case, in binary mode, with paths of another machine.
    elsewhere = [f"{line[:32].upper()} */data/../{line[36:]}" for line in lines]
    listed.write_text("\n".join(["", *elsewhere]))
    assert verify(capsys, f"--results={results}", "--own_data", f"--md5_list={listed}")[0] == 0
    listed.write_text("\n".join([*lines[:-1], f"{'0' * 32}  {names[-1]}"]))
    code, _, rows = verify(capsys, f"--results={results}", "--own_data", f"--md5_list={listed}")
    assert code == 3 and names[-1] in rows["published text", "--md5_list"]["notes"][0]


# ----------------------------------------------------------------------------- causes, table, flags


def set_of(num_bytes, tokens=10**12, unknown=0, masked=10**11, shown=0.8, largest=30521, parts=500):
    totals = [
        tokens // parts,
        unknown // parts,
        masked // parts,
        int(shown * masked) // parts,
        0,
        largest,
    ]
    names = [f"part-{n:05d}-of-00500" for n in range(parts)]
    share, sizes = num_bytes / published.TFRECORD_BYTES, published.TFRECORD_PART_BYTES
    known = {name: int(share * sizes[name]) for name in names if name in sizes}
    rest = (num_bytes - sum(known.values())) // (parts - len(known))
    return [TFRecordReport(name, known.get(name, rest), totals=totals) for name in names]


@pytest.mark.parametrize(
    "reports, text",
    [
        (
            set_of(109 * 2**30),
            "about 3/10: --dupe_factor=3 instead of 10 gives this (391 GB become 117)",
        ),
        (set_of(published.TFRECORD_BYTES // 2), "--dupe_factor=5 instead of 10"),
        (set_of(2 * published.TFRECORD_BYTES), "--dupe_factor=20 instead of 10"),
        (
            set_of(published.TFRECORD_BYTES + 10**8),
            "close, not equal: another --random_seed than 12345",
        ),
        (set_of(int(published.TFRECORD_BYTES * 0.87)), "no --dupe_factor gives this ratio"),
        (
            set_of(published.TFRECORD_BYTES, unknown=10**11),
            "10 % of the tokens are [UNK]: made with --do_lower_case=False",
        ),
        (
            set_of(published.TFRECORD_BYTES, largest=28995),
            "a vocabulary of 28,996 tokens (BERT's cased one has 28,996)",
        ),
        (set_of(published.TFRECORD_BYTES, shown=0.1), "10 % of the masked tokens show [MASK]"),
        (set_of(published.TFRECORD_BYTES, parts=499), "1 of the 500 files are missing"),
    ],
)
def test_likely_causes(reports, text):
    rules = make_rules(
        512,
        76,
        0.15,
        {"[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNK, "[MASK]": MASK}
        | dict.fromkeys(range(VOCAB_SIZE - 4)),
    )
    assert any(text in cause for cause in published_checks.likely_causes(reports, rules)), (
        published_checks.likely_causes(reports, rules)
    )


def test_the_table_as_people_see_it(tfrecords):
    process = run_script("verify_dataset.py", f"--tfrecord={tfrecords}", *FLAGS, check=False)
    assert process.returncode == 3 and "error" not in process.stderr
    lines = process.stdout.splitlines()
    assert any(line.split()[:3] == ["ok", "files", "4"] for line in lines)
    assert any(
        line.split()[:3]
        == ["differs", "bytes", f"{sum(p.stat().st_size for p in tfrecords.iterdir()):,}"]
        for line in lines
    )
    assert (
        "whole, but not what MLPerf published (5 of 12 lines differ); "
        "for data of your own add --own_data"
    ) in lines[-1]
    assert "\033" not in process.stdout


def test_colours_on_terminals_only(capsys, monkeypatch):
    row = check_table.judged("set", "files", False, 3, 4)
    print_table([row])
    assert "\033" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    print_table([row])
    assert "\033[1;31mFAILED" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_table([row])
    assert "\033" not in capsys.readouterr().out


def test_all_problems_with_flags_are_reported_at_once(tmp_path):
    flags = [
        f"--tfrecord={tmp_path}/none",
        f"--results={tmp_path}",
        "--eval_10k=none",
        "--vocab_file=none",
        "--num_workers=0",
        "--masked_lm_prob=2",
    ]
    process = run_script("verify_dataset.py", *flags, check=False)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    for word in (
        "--tfrecord: ",
        "--results: ",
        "--eval_10k: none: no such file",
        "--vocab_file: ",
        "--num_workers=0",
        "--masked_lm_prob=2",
    ):
        assert word in process.stderr
    assert "nothing to verify" in run_script("verify_dataset.py", check=False).stderr
