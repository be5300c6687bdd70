"""Writing files while training continues."""

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from bert.common.files import DataError


class BackgroundWriter:
    """A thread that writes one thing at a time.

    Leaving its `with` block waits until that is written, also after an error.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._current: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Calls `write()` in the thread; waits first, as `wait`, for the call before."""
        self.wait()
        self._current = self._thread.submit(write)

    def raise_if_failed(self) -> None:
        """Raises the error of a call that has ended; does not wait for one that has not."""
        if self._current is not None and self._current.done():
            self.wait()

    def wait(self) -> None:
        """Waits until all is written; raises the error if it could not be."""
        current, self._current = self._current, None
        if current is not None:
            current.result()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except (DataError, OSError) as own_error:
            if error is None:
                raise
            print(f"warning: {own_error}", file=sys.stderr)
        finally:
            self._thread.shutdown()
