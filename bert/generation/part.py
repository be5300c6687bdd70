"""Text files -> files of training examples: the steps of one part, which both commands of data
generation take.

It opens files and calls what computes: bert/generation/wordpiece.py, bert/generation/instances.py,
bert/examples/encoding.py.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from bert.common import files
from bert.common.file_formats import detect_other_format
from bert.common.files import DataError, atomic_writer, make_parent_folder
from bert.common.progress import time_left
from bert.examples.encoding import encode_records
from bert.examples.instance_file import Header, instance_file_blocks, vocabulary_checksum
from bert.generation import instances, wordpiece
from tokenization import FullTokenizer

Report = Callable[[str], None]  # called with a line of text whenever there is progress

FORMATS = ("tfrecord", "instances")
# Of tokenization.py; earlier versions of this project took that of the Python they ran on.
UNICODE = "11.0.0"
_BLOCK_BYTES = 1 << 20  # of text, decoded at once
_LONGEST_USUAL_LINE = 20_000  # bytes


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
    texts: list  # [{"bytes": size, "crc32c": 8 hexadecimal digits}] of the files read
    documents: int
    records: int
    bytes: int  # of all files together
    checksums: list  # CRC32C of each file; [] unless asked for
    notes: list  # what is unusual about the texts, in words
    seconds: float


def generate(
    inputs: Sequence[str],
    outputs: Sequence[str],
    tokenizer: FullTokenizer,
    settings: Settings,
    *,
    output_format: str = "tfrecord",
    wants_checksums: bool = False,
    report: Report = _no_report,
) -> Generated:
    """Makes one corpus of the files `inputs` into the files `outputs`; returns `Generated`.

    Record n goes to file n mod their count. tokenizer: `FullTokenizer`, made with `settings`.
    output_format: one of FORMATS. report: called with a line of text whenever there is progress.
    DataError for text that is not UTF-8, or none.
    """
    started = time.monotonic()
    notes: list[str] = []
    corpus, texts = read_corpus(inputs, tokenizer, report, notes.append)
    report("making instances")
    generator = instances.new_generator(settings.random_seed)
    made = instances.make_instances(
        corpus,
        tokenizer.vocab,
        generator,
        max_seq_length=settings.max_seq_length,
        max_predictions_per_seq=settings.max_predictions_per_seq,
        masked_lm_prob=settings.masked_lm_prob,
        short_seq_prob=settings.short_seq_prob,
        dupe_factor=settings.dupe_factor,
    )
    order = np.arange(len(made.rows))
    instances.shuffle(order, generator)

    shape = (settings.max_seq_length, settings.max_predictions_per_seq)
    special_ids = (tokenizer.vocab["[CLS]"], tokenizer.vocab["[SEP]"])
    num_documents = len(corpus.document_starts) - 1

    def contents(number):
        """The contents of a file, piece by piece."""
        own = order[number :: len(outputs)]
        if output_format == "tfrecord":
            records = encode_records(made._replace(rows=made.rows[own]), special_ids, *shape)
            return _reported(records, len(own), report)
        report("writing instances")
        made_of = {"texts": texts, "settings": settings._asdict(), "unicode": UNICODE}
        header = Header(
            *shape, len(tokenizer.vocab), *special_ids, vocabulary_checksum(tokenizer.vocab),
            num_documents, json.dumps(made_of),
        )  # fmt: skip
        return instance_file_blocks(made, own, header)

    written, checksums = write_files(
        outputs, [contents(number) for number in range(len(outputs))], wants_checksums, report
    )
    seconds = time.monotonic() - started
    return Generated(texts, num_documents, len(order), written, checksums, notes, seconds)


def _reported(records, total, report):
    """Yields the bytes of (bytes-like, how many records it is) ..., and reports how far it is."""
    started, done = time.monotonic(), 0
    for data, count in records:
        yield data
        done += count
        seconds = time.monotonic() - started
        report(
            f"writing {done:,} of {total:,} records, {done / max(seconds, 1e-3):,.0f} records/s, "
            f"{time_left(done, total, seconds)}"
        )


def compile_kernels(tokenizer: FullTokenizer, settings: Settings, output_format: str) -> None:
    """Makes a part of two short documents, so that numba's cache holds all compiled code when
    processes start that need it.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, records = os.path.join(folder, "text"), os.path.join(folder, "records")
        with open(text, "w") as file:
            file.write("one\ntwo\n\nthree\n")
        generate([text], [records], tokenizer, settings, output_format=output_format)


def clean_text(data: bytes, path: str) -> bytes:
    r"""Returns the contents of a UTF-8 file without any \r, as TensorFlow's line reader, with which
    the reference reads, sees it. DataError names `path` and the byte that is not UTF-8.
    """
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
    paths: Sequence[str],
    tokenizer: FullTokenizer,
    report: Report = _no_report,
    note: Report = _no_report,
) -> tuple[wordpiece.Corpus, list[dict[str, int | str]]]:
    """Returns the `Corpus` of all files, and the fingerprint of each: one corpus, whose documents
    end at empty lines only, not at the end of a file. note: called with what is unusual about them.
    """
    text_tokenizer = wordpiece.TextTokenizer(tokenizer)
    sentences, fingerprints = [], []
    for path in paths:
        report(f"reading {path}")
        data = files.read_bytes(path)
        fingerprints.append(files.fingerprint([data]))
        report(f"tokenising {path}")
        text = clean_text(data, path)
        sentences.append(text_tokenizer.tokenize(text))
        _note_long_lines(text, path, note)
    corpus = wordpiece.join(sentences)
    if len(corpus.document_starts) == 1:
        raise DataError(
            f"{', '.join(map(str, paths))}: no text; "
            "expected one sentence a line, empty lines between documents"
        )
    return corpus, fingerprints


def _note_long_lines(text, path, note):
    """Calls `note` if a line of a text (bytes) is too long to be a sentence."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    sizes = np.diff(ends, prepend=-1, append=len(text)) - 1
    longest = int(np.argmax(sizes))
    if sizes[longest] > _LONGEST_USUAL_LINE:
        note(
            f"{path}: line {longest + 1} has {sizes[longest]:,} bytes; expected one sentence a "
            "line: what does not fit into an example is cut off"
        )


def write_files(
    paths: Sequence[str],
    contents: Sequence[Iterable[Any]],
    wants_checksums: bool,
    report: Report,
) -> tuple[int, list[int]]:
    """Writes files of bytes-like pieces; none appears before all are written.

    Returns (bytes of all, CRC32C of each or []).
    """
    written, checksums = 0, [0] * len(paths)
    for path in paths:
        make_parent_folder(path)
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(atomic_writer(path)) for path in paths]
        for number, (output, pieces) in enumerate(zip(outputs, contents)):
            for piece in pieces:
                written += output.write(piece)
                if wants_checksums:
                    checksums[number] = google_crc32c.extend(checksums[number], bytes(piece))
        report("waiting for the disk")
    return written, checksums if wants_checksums else []
