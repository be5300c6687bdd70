"""One file of a data set: what is in it, what is wrong with it, how it differs from other files.

`inspect_text` and `inspect_tfrecord` read a file once, in memory that does not grow with it, and
return a small report.
"""

import codecs
import hashlib
import os
from dataclasses import dataclass, field

import numpy as np

from bert.common.file_formats import detect_other_format
from bert.common.files import DataError
from bert.examples.encoding import encode_records
from bert.examples.example_file import open_examples
from bert.examples.instance_file import InstanceFile, is_instance_file
from bert.examples.records import Block, find_payloads, have_checksums, read_blocks
from bert.examples.tfrecord import HEADER_BYTES, TFRecordFile
from bert.verification.example_check import Problem, Rules, Totals, check_block

# hashes kept of a file: two files that share a tenth of their examples share some 26 of them
SKETCH_SIZE = 256
_SMALLEST_SKETCH = 16
_MAX_PROBLEMS = 100  # of examples, after which further blocks of the file are not judged


@dataclass
class TextReport:
    path: str
    num_bytes: int
    md5: str
    problem: str | None  # what is wrong with it, None if nothing is


def inspect_text(path: str) -> TextReport:
    """Returns the TextReport of a file that should be UTF-8 text."""
    digest, decoder = hashlib.md5(), codecs.getincrementaldecoder("utf-8")()
    num_bytes, problem, block = 0, None, b"\n"
    with open(path, "rb") as file:
        while more := file.read(1 << 20):
            block = more
            digest.update(block)
            if num_bytes == 0 and (found := detect_other_format(block)):
                problem = f"{path}: {found}"
            if problem is None:
                problem = _utf8_problem(decoder, block, path, num_bytes)
            num_bytes += len(block)
    if num_bytes == 0:
        problem = f"{path}: 0 bytes; make it again"
    elif problem is None and not block.endswith(b"\n"):
        problem = (
            f"{path}: the last line has no line end, the file is cut off at byte {num_bytes:,}; "
            "make or fetch it again"
        )
    return TextReport(path, num_bytes, digest.hexdigest(), problem)


def _utf8_problem(decoder, block, path, offset):
    held_back = len(decoder.getstate()[0])
    try:
        decoder.decode(block)
    except UnicodeDecodeError as error:
        return (
            f"{path}: byte {offset - held_back + error.start:,} is not UTF-8; "
            "make or fetch the file again"
        )
    return None


@dataclass
class TFRecordReport:
    path: str
    num_bytes: int  # of an instance file: of the TFRecord file that it stands for
    num_records: int = 0  # whole, or with corrupt data
    broken_at: str | None = None  # why reading stopped before the end
    num_corrupt: int = 0  # records whose data do not have their checksum
    corrupt: list = field(default_factory=list)  # messages about the first of them
    problems: list = field(default_factory=list)  # Problem, of examples
    is_all_checked: bool = True  # False: after so many problems, the others were not judged
    totals: list = field(default_factory=lambda: [0] * len(Totals._fields))
    num_examples: int = 0  # without a problem
    num_repeated: int = 0  # of these, those that are in the file before
    # The smallest distinct hashes of the examples, sorted: the same in any order of the file.
    sketch: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


def inspect_tfrecord(path: str, rules: Rules) -> TFRecordReport:
    """Returns the TFRecordReport of a TFRecord file, or of an instance file as the TFRecord file
    that it stands for. rules: of its examples, from `make_rules`."""
    report = TFRecordReport(path, os.path.getsize(path))
    hashes = [np.empty(0, np.uint64)]  # 8 bytes an example, a three hundredth of the file
    try:
        for block in _blocks_of(path, report):
            _add_block(report, block, rules, hashes)
    except DataError as error:
        report.broken_at = str(error)
    distinct, counts = np.unique(np.concatenate(hashes), return_counts=True)
    report.num_examples = int(counts.sum())
    report.num_repeated = report.num_examples - len(distinct)
    report.sketch = distinct[:SKETCH_SIZE].copy()
    return report


def _blocks_of(path, report):
    """Yields the Blocks of a TFRecord file, or of the records that an instance file stands for."""
    if not is_instance_file(path):
        with TFRecordFile(path) as file:
            yield from read_blocks(file)
        return
    instances = InstanceFile(path)
    instances.check_contents()
    header = instances.header
    report.num_bytes = header.tfrecord_bytes
    for records, _ in encode_records(
        instances.instances, header.special_ids, header.max_seq_length,
        header.max_predictions_per_seq,
    ):  # fmt: skip
        data = np.frombuffer(records.toreadonly(), np.uint8)  # as kernels know blocks of files
        yield Block(data, None, *find_payloads(data))


def _add_block(report, block, rules, hashes):
    def place(number, start):
        if block.offset is None:
            return f"{report.path}: record {number:,}"
        return f"{report.path}: record {number:,} at byte {block.offset + start - HEADER_BYTES:,}"

    first = report.num_records
    report.num_records += len(block.starts)
    is_whole = have_checksums(block.data, block.starts, block.ends)
    corrupt = np.flatnonzero(~is_whole).tolist()
    report.num_corrupt += len(corrupt)
    for k in corrupt[: _MAX_PROBLEMS - len(report.corrupt)]:
        report.corrupt.append(
            f"{place(first + k, block.starts[k])}: its data do not have their checksum; "
            "make the file again"
        )
    if not report.is_all_checked:
        return
    whole = np.flatnonzero(is_whole)
    starts, ends = block.starts[whole], block.ends[whole]
    room = _MAX_PROBLEMS - len(report.problems)
    problems, found, totals = check_block(
        block.data, starts, ends, rules, lambda k: place(first + int(whole[k]), starts[k]), room
    )
    report.problems += [
        Problem(first + int(whole[problem.number]), problem.kind, problem.text)
        for problem in problems
    ]
    report.is_all_checked = len(report.problems) < _MAX_PROBLEMS
    largest = max(report.totals[-1], totals[-1])
    report.totals = [a + b for a, b in zip(report.totals, totals)][:-1] + [largest]
    hashes.append(found[found != 0])


def shared_part(a: np.ndarray, b: np.ndarray) -> float:
    """Estimates, by two sketches, which part of the smaller file's examples is in the other too.

    0.0 to 1.0; 0.0 where the sketches are too small for an estimate.
    """
    if min(len(a), len(b)) < _SMALLEST_SKETCH:
        return 0.0
    # Below the smaller of the two limits, both sketches are complete.
    limit = min(
        sketch[-1] if len(sketch) == SKETCH_SIZE else np.uint64(2**64 - 1) for sketch in (a, b)
    )
    a, b = a[a <= limit], b[b <= limit]
    smaller = min(len(a), len(b))
    if smaller < _SMALLEST_SKETCH:
        return 0.0
    return len(np.intersect1d(a, b, assume_unique=True)) / smaller


def eval_articles_problem(folder: str) -> str | None:
    """Returns what is wrong if eval.md5 does not have the MD5 of each article of eval.txt."""
    with (
        open(os.path.join(folder, "eval.txt"), "rb") as text,
        open(os.path.join(folder, "eval.md5")) as md5s,
    ):
        expected = md5s.read().split()
        articles = text.read().removesuffix(b"\n\n").split(b"\n\n")
    if len(articles) != len(expected):
        return f"eval.txt has {len(articles):,} articles, eval.md5 has {len(expected):,} lines"
    for number, (article, md5) in enumerate(zip(articles, expected)):
        if hashlib.md5(article.rstrip()).hexdigest() != md5:
            return (
                f"eval.txt: article {number:,} does not have the MD5 "
                f"of line {number + 1:,} of eval.md5"
            )
    return None


def eval_digest(path: str) -> str:
    """The digest of input_ids by which MLPerf submitters compare evaluation sets.

    MD5 of str(list), the list holding for each record the MD5 hex of str(ids), ids = its first
    sum(input_mask) input_ids. DataError if the file is corrupt.
    """
    digests, file = [], open_examples(path)
    for _, example in file.examples(0, file.count()):
        ids = example["input_ids"][: example["input_mask"].sum()].tolist()
        digests.append(hashlib.md5(str(ids).encode()).hexdigest())
    return hashlib.md5(str(digests).encode()).hexdigest()
