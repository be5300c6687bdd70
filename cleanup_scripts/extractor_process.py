"""One WikiExtractor that is given slices of a dump, one after the other. Imported by
extract_dump.py, never run.

WikiExtractor (AGPL-3.0) is a command: it reads pages on its standard input and writes articles on
its standard output. It does not say when it has done all that it was given, so after each slice
comes a page with a random title: when that page comes back, the slice is complete.
"""

import collections
import contextlib
import os
import re
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence

from bert.common.files import DataError

PATIENCE = 600.0  # seconds, for a WikiExtractor that closed its output to end too
END_OF_ARTICLE = b"</doc>\n"
MARK = """
<page>
<title>{title}</title>
<ns>0</ns>
<id>mark{number}</id>
<revision>
<id>mark{number}</id>
<text xml:space="preserve">The slice ends here.</text>
</revision>
</page>
"""


class ExtractorProcess:
    """command: WikiExtractor, reading /dev/stdin, writing to '-'; header: the dump's siteinfo."""

    def __init__(self, command: Sequence[str], header: bytes) -> None:
        # Unbuffered, else the last articles of a slice would wait for the next slice's.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # so that `kill` reaches its own processes too
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._stderr = self._process.stderr
        self._header = header
        self._title = f"extract-dump-{secrets.token_hex(16)}"
        self._num_slices = 0
        self._last_words: collections.deque[str] = collections.deque(maxlen=20)
        self._feed_error: BaseException | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def extract(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yields the articles, <doc ...> to </doc>, of a slice whose XML is `blocks`.

        After an error, `kill` is all that can be called.
        """
        feeder = threading.Thread(target=self._feed, args=(blocks,), daemon=True)
        feeder.start()
        lines: list[bytes] = []
        last = b""
        for line in self._stdout:
            lines.append(line)
            if line == END_OF_ARTICLE:
                if self._title.encode() in lines[0]:
                    break
                last = lines[0]
                yield b"".join(lines)
                lines = []
        else:
            why = self._why_it_ended(last)
            self.kill()
            feeder.join()
            raise self._feed_error or DataError(why)
        feeder.join()

    def _feed(self, blocks):
        """A thread: writes the XML and the mark to WikiExtractor."""
        self._num_slices += 1
        mark = MARK.format(title=self._title, number=self._num_slices).encode()
        try:
            if self._num_slices == 1:
                self._stdin.write(self._header)
            for block in blocks:
                self._stdin.write(block)
            self._stdin.write(mark)
            self._stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: `extract` says why
        except BaseException as error:
            self._feed_error = error
            self.kill()

    def _listen(self):
        """A thread: keeps the last words of WikiExtractor, and ends it after an error.

        If one of its own processes dies, the others would wait for ever.
        """
        is_fatal, before = False, ""
        for raw in self._stderr:
            line = raw.decode(errors="replace").rstrip()
            self._last_words.append(line)
            if line.startswith("Traceback"):
                # The older version drops a page that it cannot extract, and goes on.
                is_fatal = is_fatal or "Processing page" not in before
            elif is_fatal and line and not line.startswith(" "):
                self.kill()  # this line is the error itself
            before = line

    def _why_it_ended(self, last_article):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
            self._listener.join(PATIENCE)
        words = [line for line in self._last_words if line]
        title = re.search(rb'title="(.*)"', last_article)
        place = f"after article {title[1].decode()!r}" if title else "before the first article"
        why = words[-1] if words else f"it did not say why (exit code {self._process.poll()})"
        return f"WikiExtractor ended {place} of this slice: {why}"

    def send_kill(self) -> None:
        """Ends WikiExtractor and its processes, and waits for nothing: for signal handlers.

        SIGTERM ends all of them but multiprocessing's resource tracker, which then removes the
        templates from shared memory.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        self.send_kill()
        self._process.wait()

    def close(self) -> None:
        """Lets WikiExtractor end by itself; it has nothing to do any more."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._process.wait()
