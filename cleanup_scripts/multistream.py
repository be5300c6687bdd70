"""Wikimedia's multistream dumps: where their bzip2 streams lie, and what is in them. Imported by
extract_dump.py, never run.

Such a dump is a row of bzip2 streams, each complete in itself: a header (<mediawiki>, <siteinfo>),
then a stream for each 100 pages, then </mediawiki>. So a slice of the dump, from one border between
streams to another, can be decompressed by itself. The borders are found in the file; Wikimedia's
index of them is not needed. A stream begins with ten known bytes. Inside a stream they may occur by
chance, so they count only where a whole stream decompresses from there, checksums included, and its
text begins with a page.
"""

import bz2
import re
from collections.abc import Iterator
from typing import BinaryIO

from bert.common.files import DataError

# "BZh", the size of a block in 100 kB, the magic number of a block (the digits of pi).
STREAM_START = re.compile(rb"BZh[1-9]1AY&SY")
LONGEST_START = 10  # bytes
READ_SIZE = 1 << 16  # bytes; a stream of 100 pages has about 90,000
BUFFER_SIZE = 1 << 20  # bytes; going back within them reads nothing again
HEADER_LIMIT = 1 << 20  # bytes of XML in a header at most; Wikimedia's have about 4,000
STREAM_LIMIT = 1 << 29  # and in a stream of 100 pages; MediaWiki's pages have 2 MB at most


class DamagedStream(DataError):
    """A stream that cannot be read. `text`: its beginning, as far as it could be decompressed."""

    def __init__(self, fault: str, text: bytes = b"") -> None:
        super().__init__(fault)
        self.text = text


def read_header(path: str) -> tuple[bytes, int] | None:
    """(XML of the header, byte where the pages begin) of a multistream dump; None of another."""
    with open(path, "rb", buffering=BUFFER_SIZE) as file:
        try:
            xml, end = _read_stream(file, 0, HEADER_LIMIT)
        except DamagedStream:
            return None
        is_header = template_prefix(xml) and b"</siteinfo>" in xml and b"<page>" not in xml
        return (xml, end) if is_header and not _is_long(file, end) else None


def _is_long(file, start):
    """Whether a stream begins there that has too much text for 100 pages."""
    try:
        _read_stream(file, start)
    except DamagedStream as damage:
        return len(damage.text) > STREAM_LIMIT
    return False


def template_prefix(header: bytes) -> bytes:
    """How titles of templates begin, such as b"Template:"; b"" if the header does not say."""
    name = re.search(rb'<namespace key="10"[^>]*>([^<]+)<', header)
    return name[1] + b":" if name else b""


def find_border(path: str, position: int, end: int) -> int:
    """The first byte from `position` on, before `end`, where a stream begins; `end` if none."""
    with open(path, "rb", buffering=BUFFER_SIZE) as file:
        return _find_border(file, position, end)


def read_streams(path: str, start: int, end: int) -> Iterator[tuple[bytes, str]]:
    """Yields (XML, "") of each stream of a slice, (b"", what was found) where one is damaged."""
    last_page = ""
    with open(path, "rb", buffering=BUFFER_SIZE) as file:
        while start < end:
            try:
                xml, next_start = _read_stream(file, start)
                _check_utf_8(xml)
            except DamagedStream as damage:
                next_start = _find_border(file, start + 1, end)
                page = _last_page(damage.text) or last_page or "the first of this slice"
                yield (
                    b"",
                    f"byte {start:,}: a stream of pages is damaged ({damage}), in or after page "
                    f"{page}; its pages, up to byte {next_start:,}, are left out",
                )
            else:
                last_page = _last_page(xml) or last_page
                yield xml, ""
            start = next_start
    if start > end:
        raise DataError(f"{path}: a stream ends at byte {start:,}, behind its slice's end, {end:,}")


def _read_stream(file: BinaryIO, start: int, limit: int = STREAM_LIMIT) -> tuple[bytes, int]:
    """(text of the stream that begins at byte `start`, byte after it); at most `limit` of text."""
    decompressor, parts, size, place = bz2.BZ2Decompressor(), [], 0, start
    while not decompressor.eof:
        file.seek(place)
        block = file.read(READ_SIZE)
        place += len(block)
        try:
            parts.append(decompressor.decompress(block))
        except OSError:
            raise DamagedStream("not bzip2 data, or a wrong checksum", b"".join(parts)) from None
        size += len(parts[-1])
        if not block or size > limit:
            fault = "the file ends within it" if not block else f"over {limit:,} bytes of text"
            raise DamagedStream(fault, b"".join(parts))
    return b"".join(parts), place - len(decompressor.unused_data)


def _find_border(file, position, end):
    """See find_border."""
    while position < end:
        file.seek(position)
        block = file.read(min(BUFFER_SIZE, end - position + LONGEST_START - 1))
        for match in STREAM_START.finditer(block):
            if position + match.start() < end and _is_border(file, position + match.start()):
                return position + match.start()
        position += max(1, len(block) - LONGEST_START + 1)
    return end


def _is_border(file, position):
    try:
        xml, _ = _read_stream(file, position)
    except DamagedStream:
        return False
    return xml.lstrip().startswith((b"<page>", b"</mediawiki>"))


def _check_utf_8(xml):
    try:
        xml.decode()
    except UnicodeDecodeError as error:
        fault = f"0x{xml[error.start]:02x} at byte {error.start:,} of its text is not UTF-8"
        raise DamagedStream(fault, xml[: error.start]) from None


def _last_page(xml):
    """Title and id of the last page that begins in some XML; "" if none does."""
    begin = xml.rfind(b"<title>")
    if begin < 0:
        return ""
    title, number = (
        re.search(pattern, xml[begin:]) for pattern in (rb"<title>([^<]*)", rb"<id>(\d+)")
    )
    name = repr(title[1].decode(errors="replace")) if title else ""
    return f"{name} (id {number[1].decode()})" if number else name
