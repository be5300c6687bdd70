"""The slices of a multistream dump: their borders, their templates, their text. Imported by
extract_dump.py, never run. What each function makes depends on its arguments alone, not on which
process calls it, nor when.
"""

import ctypes
import itertools
import multiprocessing.util
import os
import re
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence

from extractor_process import ExtractorProcess
from multistream import STREAM_START, find_border, read_streams

from bert.common.files import DataError, atomic_writer, read_blocks, sync_folder
from bert.common.processes import process_pool

TAIL_SIZE = 1 << 16  # bytes; Wikimedia's last stream, "</mediawiki>", has 44
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def slice_borders(
    dump: str, pages_start: int, slice_size: int, num_workers: int
) -> list[tuple[int, int]]:
    """(first byte, byte after the last) of each slice: it begins where the first stream begins that
    lies behind a multiple of `slice_size`.
    """
    end = os.path.getsize(dump)
    positions = range(pages_start + slice_size, end, slice_size)
    with process_pool(num_workers, len(positions)) as pool:
        borders = pool.map(find_border, itertools.repeat(dump), positions, itertools.repeat(end))
        starts = sorted({pages_start, *borders} - {end})
    return list(zip(starts, [*starts[1:], end]))


def has_last_stream(dump: str) -> bool:
    """Whether the dump ends in a stream with </mediawiki>, as a whole one does."""
    end = os.path.getsize(dump)
    with open(dump, "rb") as file:
        file.seek(max(0, end - TAIL_SIZE))
        starts = [match.start() for match in STREAM_START.finditer(file.read())]
    last = max(0, end - TAIL_SIZE) + starts[-1] if starts else end
    return any(b"</mediawiki>" in xml for xml, _ in read_streams(dump, last, end))


# --------------------------------------------------------------------------------------------------
# Templates


def collect_templates(prefix: bytes, path: str, dump: str, start: int, end: int) -> tuple[int, int]:
    """Writes the templates of a slice to a file; returns (bytes of dump, bytes written)."""
    with atomic_writer(path) as file:
        written = sum(
            file.write(templates_of(xml, prefix)) for xml, _ in read_streams(dump, start, end)
        )
    return end - start, written


def templates_of(xml: bytes, prefix: bytes) -> bytes:
    """The pages whose titles begin with `prefix`, each without what stands between title and text:
    all that WikiExtractor reads of templates, in the dump's order.
    """
    pages = []
    for match in re.finditer(rb"<page>\s*<title>" + re.escape(prefix) + rb"[^<]*</title>\n", xml):
        end = xml.find(b"</page>", match.end())
        text = xml.find(b"<text", match.end(), end)
        if text >= 0:
            pages.append(match[0] + xml[text:end] + b"</page>\n")
    return b"".join(pages)


def join_files(path: str, *parts: str) -> int:
    """Writes the contents of some files, one after the other, to another; returns their bytes."""
    with atomic_writer(path) as file:
        return sum(file.write(block) for part in parts for block in read_blocks(part))


# --------------------------------------------------------------------------------------------------
# Text

_extractor: ExtractorProcess | None = None  # of this process, for all slices that it is given


def extract_slice(
    command: Sequence[str],
    header: bytes,
    folder: str,
    dump: str,
    start: int,
    end: int,
    file_size: int,
) -> tuple[int, int, list[str]]:
    """Writes the articles of a slice to `folder`.

    Returns (bytes of dump, bytes of text, what was found where streams are damaged).
    """
    global _extractor
    if _extractor is None:
        _end_with_parent()
        _extractor = ExtractorProcess(command, header)
    damages: list[str] = []
    try:
        articles = _extractor.extract(_intact_streams(dump, start, end, damages))
        written = write_articles(folder, articles, file_size)
    except BaseException as error:
        _extractor.kill()  # the next slice gets another one
        _extractor = None
        if isinstance(error, DataError):
            raise DataError(f"{folder}: {error}") from None
        raise
    return end - start, written, damages


def write_articles(folder: str, articles: Iterable[bytes], file_size: int) -> int:
    """Writes articles to wiki_00000 and so on in a folder that appears when it is complete.

    An article that would make a file longer than `file_size` begins the next one.
    """
    temporary = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}.tmp")
    for left_over in (folder, temporary):
        shutil.rmtree(left_over, ignore_errors=True)
    os.makedirs(temporary)
    written = 0
    for number, parts in enumerate(_group(articles, file_size)):
        with open(os.path.join(temporary, f"wiki_{number:05d}"), "xb") as file:
            written += sum(map(file.write, parts))
            file.flush()
            os.fsync(file.fileno())
    os.rename(temporary, folder)
    sync_folder(os.path.dirname(folder))
    return written


def _group(articles, file_size):
    """Yields lists of articles, each of `file_size` bytes at most, or of one article."""
    group: list[bytes] = []
    size = 0
    for article in articles:
        if group and size + len(article) > file_size:
            yield group
            group, size = [], 0
        group.append(article)
        size += len(article)
    if group:
        yield group


def _intact_streams(dump: str, start: int, end: int, damages: list[str]) -> Iterator[bytes]:
    for xml, damage in read_streams(dump, start, end):
        if damage:
            damages.append(damage)
        yield xml


def _end_with_parent() -> None:
    """Ends this process and its WikiExtractor with the parent process, however that ends."""

    def stop(number, _):
        if _extractor:
            _extractor.send_kill()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # At its usual end, WikiExtractor removes the templates from shared memory.
    multiprocessing.util.Finalize(None, _close_extractor, exitpriority=1)


def _close_extractor():
    if _extractor:
        _extractor.close()
