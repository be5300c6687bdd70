"""Instance files: the instances of one text, in the layout of safetensors.

    8 bytes   length of the header, little-endian
    header    JSON: names, types, shapes and places of the tensors, and under `__metadata__` what
              the file was made of
    tensors   instances  U8 [N, 32], rows of the type INSTANCE of bert/examples/instances.py
              changes    U16 [M, 2], position and new id
              tokens     U16 [T]
              crc32c     U8 [4], CRC32C of all bytes before it, little-endian

`safetensors.numpy.load_file` reads it too (https://github.com/huggingface/safetensors). Here it is
mapped into memory: the processes of a machine share one copy, and only what is needed is read.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from bert.common.file_formats import detect_other_format
from bert.common.files import DataError, read_blocks
from bert.examples.batch import BatchLayout
from bert.examples.encoding import tfrecord_bytes
from bert.examples.example import feature_lengths
from bert.examples.instances import (
    CHANGE,
    INSTANCE,
    InstanceBuffer,
    Instances,
    fill_batch,
    first_impossible,
    gather_changes,
)

FORMAT, VERSION = "BERT instances", "1"
_FIRST_BYTES = b'{"__metadata__":{"format":"BERT instances"'
_LENGTH_BYTES, _CHECKSUM_BYTES = 8, 4
_MAX_HEADER_BYTES = 1 << 24
_BLOCK_ROWS, _BLOCK_TOKENS = 1 << 12, 1 << 19  # about 1 MB
_REPAIR = "make it again with --output_format=instances"


class Header(NamedTuple):
    """What an instance file says of itself."""

    max_seq_length: int
    max_predictions_per_seq: int
    vocab_size: int
    cls_id: int
    sep_id: int
    vocabulary: str  # its `vocabulary_checksum`
    documents: int
    made_of: str  # JSON: texts and flags
    tfrecord_bytes: int = 0  # size of the TFRecord file of the same examples

    @property
    def special_ids(self) -> tuple[int, int]:
        return self.cls_id, self.sep_id

    @property
    def lengths(self) -> dict[str, int]:
        """{feature name: number of values} of the examples."""
        return feature_lengths(self.max_seq_length, self.max_predictions_per_seq)


def is_instance_file(path: str) -> bool:
    """Whether a file begins as an instance file does."""
    with open(path, "rb", buffering=0) as file:
        return file.read(64)[_LENGTH_BYTES:].startswith(_FIRST_BYTES)


def instance_file_blocks(
    instances: Instances, order: np.ndarray, header: Header
) -> Iterator[bytes]:
    """Yields the contents of the file of the instances `order` (int64 [N]), about 1 MB at a time.

    The changes lie in the order of the instances: who reads these from front to back reads both so.
    The header's `tfrecord_bytes` is computed here.
    """
    size = sum(
        tfrecord_bytes(
            instances._replace(rows=instances.rows[numbers]), header.special_ids,
            header.max_seq_length, header.max_predictions_per_seq,
        )
        for numbers in _cut(np.sort(order), _BLOCK_ROWS)  # as they lie: half the time
    )  # fmt: skip
    header = header._replace(tfrecord_bytes=size)
    num_changes = int(instances.rows["num_changes"][order].sum(dtype=np.int64))
    content = _header_content(len(order), num_changes, len(instances.tokens), header)
    checksum = 0
    for block in itertools.chain(
        [_header_bytes(content)],
        _moved_rows(instances, order),
        (gather_changes(instances, numbers) for numbers in _cut(order, _BLOCK_ROWS)),
        _cut(instances.tokens, _BLOCK_TOKENS),
    ):
        data = bytes(block)
        checksum = google_crc32c.extend(checksum, data)
        yield data
    yield checksum.to_bytes(_CHECKSUM_BYTES, "little")


def _cut(values, step):
    """Yields pieces of an array."""
    for first in range(0, len(values), step):
        yield values[first : first + step]


def _moved_rows(instances, order):
    """Yields the rows `order`, some at a time, with their changes one after the other."""
    end = 0
    for numbers in _cut(order, _BLOCK_ROWS):
        rows = instances.rows[numbers]
        ends = end + np.cumsum(rows["num_changes"], dtype=np.int64)
        rows["first_change"] = ends - rows["num_changes"]
        end = ends[-1]
        yield rows


def vocabulary_checksum(vocab: Mapping[str, int]) -> str:
    """Returns the CRC32C of a vocabulary's tokens, one a line in the order of their ids: 8
    hexadecimal digits.
    """
    lines = "\n".join(sorted(vocab, key=lambda token: vocab[token]))
    return f"{google_crc32c.value(lines.encode()):08x}"


def _header_bytes(content):
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % 16)  # the rows begin at a multiple of 16
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _header_content(num_instances, num_changes, num_tokens, header):
    """The JSON of a header."""
    metadata = {name: str(value) for name, value in header._asdict().items()}
    content: dict[str, Any] = {"__metadata__": {"format": FORMAT, "version": VERSION, **metadata}}
    end = 0
    for name, dtype, shape, size in (
        ("instances", "U8", [num_instances, INSTANCE.itemsize], INSTANCE.itemsize),
        ("changes", "U16", [num_changes, 2], CHANGE.itemsize),
        ("tokens", "U16", [num_tokens], 2),
        ("crc32c", "U8", [_CHECKSUM_BYTES], 1),
    ):
        start, end = end, end + shape[0] * size
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return content


class InstanceFile:
    """An instance file, mapped into memory. Attributes: `path`, `header`, `instances`.

    Raises DataError for a file that is none, is not whole, or is of another version; OSError for
    one that cannot be read.
    """

    def __init__(self, path: str):
        self.path = path
        self._status = _status(path)
        content, start = self._read_header()
        self.header, ends = self._parse(content)
        size = self._status[0]
        if size != start + ends["crc32c"]:
            raise DataError(
                f"{path}: {size:,} bytes, its header says {start + ends['crc32c']:,}: the file is "
                f"cut off or was added to; {_REPAIR}"
            )
        # Copy on write: kernels take such arrays for ordinary ones, and the file stays as it is.
        octets = np.asarray(np.memmap(path, np.uint8, mode="c", offset=0))[start:]
        self.instances = Instances(
            octets[: ends["instances"]].view(INSTANCE),
            octets[ends["changes"] : ends["tokens"]].view(np.uint16),
            octets[ends["instances"] : ends["changes"]].view(CHANGE),
        )

    def _read_header(self):
        """Returns (the header's JSON, the byte at which the tensors begin)."""
        with open(self.path, "rb") as file:
            first = file.read(64)
            if not first[_LENGTH_BYTES:].startswith(_FIRST_BYTES):
                kind = detect_other_format(first)
                what = f"this is {kind}" if kind else _REPAIR
                raise DataError(f"{self.path}: byte 0: no instance file begins here; {what}")
            length = int.from_bytes(first[:_LENGTH_BYTES], "little")
            file.seek(_LENGTH_BYTES)
            text = file.read(length) if length <= _MAX_HEADER_BYTES else b""
        try:
            return json.loads(text), _LENGTH_BYTES + length
        except ValueError:
            raise DataError(f"{self.path}: its header is not JSON; {_REPAIR}") from None

    def _parse(self, content):
        """Returns (Header, {tensor: the byte at which it ends, from the first one on})."""
        metadata = content["__metadata__"]
        if metadata.get("version") != VERSION:
            raise DataError(
                f"{self.path}: version {metadata.get('version')!r} of the instance format, "
                f"expected {VERSION!r}; {_REPAIR}, or read it with the version of this project "
                "that made it"
            )
        try:
            header = Header(
                *(kind(metadata[name]) for name, kind in Header.__annotations__.items())
            )
            rows, changes, tokens = (
                content[name]["shape"][0] for name in ("instances", "changes", "tokens")
            )
            is_right = content == _header_content(rows, changes, tokens, header) and rows > 0
        except (KeyError, TypeError, ValueError, IndexError):
            is_right = False
        if not is_right:
            raise DataError(f"{self.path}: its header is not one of an instance file; {_REPAIR}")
        tensors = {name: content[name] for name in content if name != "__metadata__"}
        return header, {name: tensor["data_offsets"][1] for name, tensor in tensors.items()}

    @property
    def num_records(self) -> int:
        return len(self.instances.rows)

    def batch(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the examples `numbers` (int64 [K]) as {feature name: array [K, length]}, int64 or
        float32.
        """
        header = self.header
        chosen = InstanceBuffer(len(numbers), header.max_seq_length, header.max_predictions_per_seq)
        self.copy_to(chosen, numbers)
        layout = BatchLayout(header.lengths)
        batch = layout.split(*layout.empty(len(numbers)))
        fill_batch(chosen.instances(), np.arange(len(numbers)), header.special_ids, batch)
        return batch

    def copy_to(self, buffer: InstanceBuffer, numbers: np.ndarray) -> None:
        """Appends the instances `numbers` (int64 [K]) to a buffer; DataError names one that cannot
        be.
        """
        bad = buffer.append(self.instances, numbers)
        if bad is not None:
            raise self._not_possible(bad)

    def place(self, number: int) -> str:
        """Returns where an instance stands, in words for an error."""
        return f"{self.path}: record {number}"

    def problems(self, lengths: dict[str, int], vocab_size: int | None) -> list[str]:
        """Returns what keeps the examples from being read with others of `lengths` ({feature name:
        number of values}), by a model or program of `vocab_size` tokens (None: any).
        """
        found, problems = self.header.lengths, []
        for name, what in (("input_ids", "tokens"), ("masked_lm_ids", "predictions")):
            if found[name] != lengths[name]:
                problems.append(
                    f"{self.path}: examples of {found[name]} {what}, expected {lengths[name]} as "
                    "of the first file: examples that are read together have one max_seq_length "
                    "and one max_predictions_per_seq"
                )
        if vocab_size is not None and self.header.vocab_size > vocab_size:
            problems.append(
                f"{self.path}: made with a vocabulary of {self.header.vocab_size:,} tokens, "
                f"expected at most vocab_size {vocab_size:,}; use the vocabulary and configuration "
                "that made the examples"
            )
        return problems

    def check_contents(self) -> None:
        """DataError if the file does not have its checksum, or an instance is not possible. Reads
        all of it: 0.03 s for 60 MB.
        """
        checksum, last = 0, b""
        for block in read_blocks(self.path):
            block = last + block
            checksum = google_crc32c.extend(checksum, block[:-_CHECKSUM_BYTES])
            last = block[-_CHECKSUM_BYTES:]
        if checksum.to_bytes(_CHECKSUM_BYTES, "little") != last:
            raise DataError(f"{self.path}: the file does not have its checksum; {_REPAIR}")
        header = self.header
        number = first_impossible(
            self.instances, header.max_seq_length, header.max_predictions_per_seq
        )
        if number < self.num_records:
            raise self._not_possible(number)

    def _not_possible(self, number):
        return DataError(f"{self.place(number)}: not a possible instance; {_REPAIR}")

    def check_unchanged(self) -> None:
        """DataError if the file changed or is gone since it was opened."""
        if not os.path.exists(self.path) or _status(self.path) != self._status:
            raise DataError(f"{self.path}: the file changed while it was read; start again")


def _status(path):
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino
