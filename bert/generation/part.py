"""Text files -> TFRecord files of training examples: the steps of one part, which both commands of
data generation take.

It opens files and calls what computes: bert/generation/wordpiece.py, bert/generation/instances.py,
bert/examples/encoding.py.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from bert.common.file_formats import detect_other_format
from bert.common.files import DataError, atomic_writer, make_parent_folder, read_bytes
from bert.common.progress import time_left
from bert.examples.encoding import encode_records
from bert.generation import instances, wordpiece
from tokenization import FullTokenizer

Report = Callable[[str], None]  # called with a line of text whenever there is progress

_BLOCK_BYTES = 1 << 20  # of text, decoded at once


def _no_report(text: str) -> None:
    pass


class Settings(NamedTuple):
    """What shapes the data beside the text and the vocabulary: the flags of the same names, in
    create_pretraining_data.py.
    """

    do_lower_case: bool
    preserve_unused_tokens: bool
    max_seq_length: int
    max_predictions_per_seq: int
    masked_lm_prob: float
    short_seq_prob: float
    dupe_factor: int
    random_seed: int


class Generated(NamedTuple):
    documents: int
    records: int
    bytes: int  # of all files together
    checksums: list  # CRC32C of each file; [] unless asked for
    seconds: float


def generate(
    inputs: Sequence[str],
    outputs: Sequence[str],
    tokenizer: FullTokenizer,
    settings: Settings,
    *,
    wants_checksums: bool = False,
    report: Report = _no_report,
) -> Generated:
    """Makes one corpus of the files `inputs` into the TFRecord files `outputs`; returns
    `Generated`.

    Record n goes to file n mod their count. tokenizer: `FullTokenizer`, made with `settings`.
    report: called with a line of text whenever there is progress. DataError for text that is not
    UTF-8, or none.
    """
    started = time.monotonic()
    corpus = read_corpus(inputs, tokenizer, report)
    report("making instances")
    generator = instances.new_generator(settings.random_seed)
    rows, changes = instances.make_instances(
        corpus,
        tokenizer.vocab,
        generator,
        max_seq_length=settings.max_seq_length,
        max_predictions_per_seq=settings.max_predictions_per_seq,
        masked_lm_prob=settings.masked_lm_prob,
        short_seq_prob=settings.short_seq_prob,
        dupe_factor=settings.dupe_factor,
    )
    order = np.arange(len(rows))
    instances.shuffle(order, generator)

    def encode(some):
        return encode_records(
            some,
            corpus.tokens,
            changes,
            tokenizer.vocab,
            settings.max_seq_length,
            settings.max_predictions_per_seq,
        )

    written, checksums = write_records(outputs, rows[order], encode, wants_checksums, report)
    num_documents = len(corpus.document_starts) - 1
    return Generated(num_documents, len(rows), written, checksums, time.monotonic() - started)


def compile_kernels(tokenizer: FullTokenizer, settings: Settings) -> None:
    """Makes a part of two short documents, so that numba's cache holds all compiled code when
    processes start that need it.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, records = os.path.join(folder, "text"), os.path.join(folder, "records")
        with open(text, "w") as file:
            file.write("one\ntwo\n\nthree\n")
        generate([text], [records], tokenizer, settings)


def read_text(path: str) -> bytes:
    r"""Returns a UTF-8 file (bytes) without any \r, as TensorFlow's line reader, with which the
    reference reads, sees it.
    """
    data = read_bytes(path)
    if found := detect_other_format(data[:64]):
        raise DataError(f"{path}: {found}")
    text = data.replace(b"\r", b"")
    bad = _first_bad_byte(text)
    if bad is not None:
        bad = int(np.flatnonzero(np.frombuffer(data, np.uint8) != ord("\r"))[bad])
        line = data.count(b"\n", 0, bad) + 1
        raise DataError(
            f"{path}: line {line}, byte {bad}: found 0x{data[bad]:02x}, expected UTF-8; "
            f"see it with: tail -c +{bad + 1} '{path}' | head -c 16 | xxd"
        )
    return text


def _first_bad_byte(text):
    """Returns the place in `text` (bytes) of the first byte that is not UTF-8, None if all are.

    Decodes some lines at a time: all at once would take several times the memory of the text.
    """
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + _BLOCK_BYTES) + 1 or len(text)
        try:
            text[start:end].decode()
        except UnicodeDecodeError as error:
            return start + error.start
        start = end
    return None


def read_corpus(
    paths: Sequence[str], tokenizer: FullTokenizer, report: Report = _no_report
) -> wordpiece.Corpus:
    """Returns the `Corpus` of all files: one corpus, whose documents end at empty lines only, not
    at the end of a file.
    """
    text_tokenizer = wordpiece.TextTokenizer(tokenizer)
    sentences = []
    for path in paths:
        report(f"reading {path}")
        text = read_text(path)
        report(f"tokenising {path}")
        sentences.append(text_tokenizer.tokenize(text))
    corpus = wordpiece.join(sentences)
    if len(corpus.document_starts) == 1:
        raise DataError(
            f"{', '.join(map(str, paths))}: no text; "
            "expected one sentence a line, empty lines between documents"
        )
    return corpus


def write_records(
    paths: Sequence[str],
    rows: np.ndarray,
    encode: Callable[[np.ndarray], Iterable[tuple[Any, int]]],
    wants_checksums: bool,
    report: Report,
) -> tuple[int, list[int]]:
    """Writes the record of rows[n] to file n mod their count; no file appears before all are
    written.

    encode: some of `rows` -> iterable of (bytes-like, how many records it is). Returns (bytes
    written, checksums or []).
    """
    started, done, written, checksums = time.monotonic(), 0, 0, [0] * len(paths)
    for path in paths:
        make_parent_folder(path)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(atomic_writer(path)) for path in paths]
        for n, file in enumerate(files):
            for records, count in encode(rows[n :: len(files)]):
                written += file.write(records)
                if wants_checksums:
                    checksums[n] = google_crc32c.extend(checksums[n], bytes(records))
                done += count
                seconds = time.monotonic() - started
                report(
                    f"writing {done:,} of {len(rows):,} records, {done / max(seconds, 1e-3):,.0f} "
                    f"records/s, {time_left(done, len(rows), seconds)}"
                )
        report("waiting for the disk")
    return written, checksums if wants_checksums else []
