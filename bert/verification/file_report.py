"""One file of a data set: what is in it, what is wrong with it, how it differs from other files.

`inspect_text` and `inspect_tfrecord` read a file once, in memory that does not grow with it, and
return a small report.
"""

import codecs
import hashlib
import os
import zlib
from dataclasses import dataclass, field

import google_crc32c
import numpy as np

from bert.common import files
from bert.common.file_formats import detect_other_format
from bert.common.files import DataError
from bert.examples.encoding import encode_records
from bert.examples.example_file import open_examples
from bert.examples.instance_file import InstanceFile, is_instance_file
from bert.examples.records import Block, find_payloads, have_checksums, read_blocks
from bert.examples.tfrecord import CHECKSUM_BYTES, HEADER_BYTES, TFRecordFile
from bert.verification.example_check import Problem, Rules, Totals, check_block

# hashes kept of a file: two files that share a hundredth of their examples share some 41 of them
SKETCH_SIZE = 4096
_SMALLEST_SKETCH = 16
_MAX_PROBLEMS = 100  # of examples, after which further blocks of the file are not judged
_MAX_ARTICLE_BYTES = 1 << 24  # a longer one is taken for several: text without empty lines
# An article of text: the hash of what is in it, the white space at both ends aside, and its size.
ARTICLE = np.dtype([("hash", "u8"), ("bytes", "i8")])


@dataclass
class TextReport:
    path: str
    num_bytes: int
    md5: str
    crc32c: str  # 8 hexadecimal digits
    problem: str | None  # what is wrong with it, None if nothing is
    articles: np.ndarray  # ARTICLE [number of articles that are not empty]


def inspect_text(path: str) -> TextReport:
    """Returns the TextReport of a file that should be UTF-8 text."""
    digest, decoder = hashlib.md5(), codecs.getincrementaldecoder("utf-8")()
    num_bytes, checksum, problem, block = 0, 0, None, b"\n"
    articles: list[tuple[int, int]] = []
    begun = b""  # of an article
    with open(path, "rb") as file:
        while more := file.read(1 << 20):
            block = more
            digest.update(block)
            checksum = google_crc32c.extend(checksum, block)
            if num_bytes == 0 and (found := detect_other_format(block)):
                problem = f"{path}: {found}"
            if problem is None:
                problem = _utf8_problem(decoder, block, path, num_bytes)
            num_bytes += len(block)
            *ended, begun = (begun + block).split(b"\n\n")
            if len(begun) > _MAX_ARTICLE_BYTES:
                ended, begun = [*ended, begun], b""
            _add_articles(articles, ended)
    _add_articles(articles, [begun])
    if num_bytes == 0:
        problem = f"{path}: 0 bytes; make it again"
    elif problem is None and not block.endswith(b"\n"):
        problem = (
            f"{path}: the last line has no line end, the file is truncated at byte {num_bytes:,}; "
            "make or fetch it again"
        )
    return TextReport(
        path, num_bytes, digest.hexdigest(), f"{checksum:08x}", problem,
        np.array(articles, ARTICLE),
    )  # fmt: skip


def _add_articles(articles, texts):
    """Appends hash and size of each text (bytes) that is not empty."""
    for text in texts:
        if text := text.strip():
            # Two CRCs of 32 bits with different polynomials: the fastest 64 bits there are here.
            articles.append((google_crc32c.value(text) << 32 | zlib.crc32(text), len(text)))


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
    fingerprint: dict = field(default_factory=dict)  # of the file: files.fingerprint
    made_of: str = ""  # JSON, of an instance file: texts and flags
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
    order: str = ""  # `digest_of_order`
    # of the examples, in order, if they were asked for
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    num_in_eval: int = 0  # hashes of the evaluation set that are among this file's


def inspect_tfrecord(
    path: str, rules: Rules, eval_hashes: np.ndarray | None = None, keeps_hashes: bool = False
) -> TFRecordReport:
    """Returns the TFRecordReport of a TFRecord file, or of an instance file as the TFRecord file
    that it stands for. rules: of its examples, from `make_rules`. eval_hashes: uint64 [K], distinct
    hashes of the evaluation set's examples, None if there is none.
    """
    report = TFRecordReport(path, os.path.getsize(path))
    hashes = [np.empty(0, np.uint64)]  # 8 bytes an example, a three hundredth of the file
    try:
        for block in _blocks_of(path, report):
            _add_block(report, block, rules, hashes)
    except DataError as error:
        report.broken_at = str(error)
    in_order = np.concatenate(hashes)
    distinct = np.unique(in_order)
    report.num_examples = len(in_order)
    report.num_repeated = report.num_examples - len(distinct)
    report.sketch = distinct[:SKETCH_SIZE].copy()
    report.order = digest_of_order(in_order)
    if keeps_hashes:
        report.hashes = in_order
    if eval_hashes is not None and len(distinct):
        places = np.searchsorted(distinct, eval_hashes).clip(max=len(distinct) - 1)
        report.num_in_eval = int(np.count_nonzero(distinct[places] == eval_hashes))
    return report


def digest_of_order(hashes: np.ndarray) -> str:
    """The MD5 of the hashes of examples (uint64 [K]): equal for the same examples in one order."""
    return hashlib.md5(hashes.tobytes()).hexdigest()


def _blocks_of(path, report):
    """Yields the Blocks of a TFRecord file, or of the records that an instance file stands for."""
    if not is_instance_file(path):
        size, checksum = 0, 0
        with TFRecordFile(path) as file:
            for block in read_blocks(file):
                whole = block.data[: block.ends[-1] + CHECKSUM_BYTES]
                size, checksum = size + len(whole), google_crc32c.extend(checksum, whole)
                yield block
        report.fingerprint = {"bytes": size, "crc32c": f"{checksum:08x}"}
        return
    instances = InstanceFile(path)
    instances.check_contents()
    report.fingerprint = files.fingerprint(files.read_blocks(path))
    header = instances.header
    report.made_of = header.made_of
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
        open(os.path.join(folder, "eval.txt"), "rb") as text_file,
        open(os.path.join(folder, "eval.md5")) as md5s,
    ):
        expected, text = md5s.read().split(), text_file.read()
    begins = [0]  # where the next article may begin
    for number, md5 in enumerate(expected):
        ends = {end for begin in begins for end in _ends_of_article(text, begin, md5)}
        if not ends and max(begins) >= len(text):
            return f"eval.txt has {number:,} articles, eval.md5 has {len(expected):,} lines"
        if not ends:
            return (
                f"eval.txt: article {number:,} does not have the MD5 "
                f"of line {number + 1:,} of eval.md5"
            )
        begins = sorted(ends)
    if begins[-1] != len(text):
        return f"eval.txt has more articles than eval.md5 has lines, {len(expected):,}"
    return None


def _ends_of_article(text: bytes, begin: int, md5: str) -> list[int]:
    """Returns where the article that begins there, of that MD5, may end, with its empty line.

    Articles hold no empty line, but one may begin with a line end, or be one ("\\n", where a text
    of articles ended): among three line ends, nothing but the next article's MD5 tells where it
    begins.
    """
    end = text.find(b"\n\n", begin)
    if end < 0 or hashlib.md5(text[begin:end].rstrip()).hexdigest() != md5:
        return []
    return [end + 2, end + 3] if text[end + 2 : end + 3] == b"\n" else [end + 2]


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
