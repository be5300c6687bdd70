"""One line of progress, overwritten and finally erased; none where stderr is no terminal."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TypeVar

Line = TypeVar("Line", bound="ProgressLine")  # not typing.Self: download.py runs on Python 3.10


class ProgressLine:
    """Use as a context manager; `show` may be called up to some hundred times a second."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()

    def __enter__(self: Line) -> Line:
        return self

    def __exit__(self, *error: object) -> None:
        self.show("")

    def show(self, text: str) -> None:
        if self._is_shown:
            columns = shutil.get_terminal_size().columns
            # The code erases what is left of an older, longer text.
            sys.stderr.write(f"\r{text[: columns - 1]}\x1b[K")
            sys.stderr.flush()


class ByteProgress(ProgressLine):
    """Bytes, rate and time left of one file. `show_bytes` may be called at every block.

    total: bytes of the whole file, None if unknown; start: bytes that were there before.
    """

    def __init__(self, what: str, total: int | None, start: int = 0) -> None:
        super().__init__()
        self._what, self._total, self._start = what, total, start
        self._started = self._shown = time.monotonic()

    def show_bytes(self, done: int) -> None:
        now = time.monotonic()
        if now - self._shown < 0.5 or done <= self._start:
            return
        self._shown = now
        done_now, seconds = done - self._start, now - self._started
        of_total, left = "", ""
        if self._total is not None:
            of_total = f" of {self._total / 1e6:,.1f}"
            left = f", {time_left(done_now, self._total - self._start, seconds)}"
        rate = f"{done_now / seconds / 1e6:,.1f} MB/s"
        self.show(f"{self._what} {done / 1e6:,.1f}{of_total} MB, {rate}{left}")


def fitted(parts: Sequence[tuple[int, str]], columns: int) -> str:
    """Returns the texts of (rank, text) joined by " | "; drops those of the highest rank until they
    fit into so many columns.
    """
    kept = list(parts)
    while len(kept) > 1 and len(_joined(kept)) > columns:
        kept.remove(max(kept))
    return _joined(kept)[:columns]


def _joined(parts):
    return " | ".join(text for _, text in parts)


def time_left(done: float, total: float, seconds: float) -> str:
    """Returns, in words, how long the rest takes if `done` (over 0) of `total` took `seconds`."""
    left = round(seconds * (total - done) / done)
    minutes, hours = left // 60, left // 3600
    if hours:
        return f"{hours} h {minutes % 60:02d} min left"
    return f"{minutes} min {left % 60:02d} s left" if minutes else f"{left} s left"
