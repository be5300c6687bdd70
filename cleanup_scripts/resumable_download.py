"""One file over HTTP, complete or not at all: a broken transfer is resumed, a transient error is
retried, the result is checked.

Imported by download.py, never run.

During the transfer, the data of <folder>/<name> are in <folder>/.<name>.part, and
<folder>/.<name>.part.json says of which version of which URL they are. A later call, also of
another process, resumes there if the server still has that version (`If-Range`). Only a checked
file gets its name.
"""

import hashlib
import http.client
import os
import random
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request

from part_file import DownloadError, LoginRequired, PartFile, Refused, Unreachable

BLOCK_BYTES = 1 << 18
LONGEST_WAIT = 60.0  # seconds between two tries
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}  # HTTP: the same request may succeed later
LOGIN_STATUS = {401, 403}
USER_AGENT = "cleanup_scripts/download.py (Python urllib)"


class TransientError(Exception):
    """An error after which another try makes sense."""

    def __init__(self, message, retry_after=0.0):
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class NoConnection(TransientError):
    """The server cannot be reached."""


def fetch(url, path, size=None, md5=None, retries=8, first_wait=1.0, timeout=60.0, if_missing=""):
    """Downloads `url` to `path`, checks it and returns its MD5 in hex.

    size: bytes, md5: hex, each None if not known. retries: how often to try again when a try brings
    no further byte. first_wait: seconds before the second try, doubled for each further one.
    timeout: seconds without a byte. if_missing: what to do when the server has no such file. Raises
    DownloadError.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    part = PartFile(path)
    name = os.path.basename(path)
    try:
        _transfer_with_retries(url, part, name, size, md5, retries, first_wait, timeout, if_missing)
        found = md5_of(part.path, name)
        if md5 is not None and found != md5:
            part.remove()
            raise DownloadError(
                f"{url}: the MD5 of what arrived is {found}, expected {md5}; it was removed. Run "
                "the same command again; if that ends the same way, the server has another file "
                f"than the published one: give another address with --url {name}=..."
            )
        part.rename_to(path)
        return found
    finally:
        part.close()


def _transfer_with_retries(url, part, name, size, md5, retries, first_wait, timeout, if_missing):
    failures = 0
    while True:
        before = part.size
        try:
            return _transfer(url, part, name, size, md5, timeout, if_missing)
        except TransientError as error:
            failures = 1 if part.size > before else failures + 1
            if failures > retries:
                raise _give_up(url, error, failures, part.size) from None
            # Not all at the same moment again, if many wait for one server: half to the whole of
            # the time.
            wait = max(
                error.retry_after,
                min(LONGEST_WAIT, first_wait * 2 ** (failures - 1)) * random.uniform(0.5, 1.0),
            )
            say(f"{name}: {error}; trying again in {wait:.0f} s (try {failures + 1})")
            time.sleep(wait)


def _give_up(url, error, failures, bytes_kept):
    """The error after the last try."""
    times = "failed once" if failures == 1 else f"failed {failures} times in a row"
    kept = f"{bytes_kept:,} bytes are kept: run the same command again to resume"
    if isinstance(error, NoConnection):
        advice = "Check the network and the proxy (https_proxy)" + (f". {kept}" * bool(bytes_kept))
        return Unreachable(f"{url}: {error}; {times}", advice)
    return Refused(f"{url}: {error}; {times}", kept if bytes_kept else "Run the same command later")


def _transfer(url, part, name, size, md5, timeout, if_missing):
    """One request: gets what is missing, or raises TransientError and keeps what arrived."""
    request = urllib.request.Request(
        url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    )
    origin = part.origin()
    start = part.size if _can_resume(origin, url, md5) else 0
    if start:
        request.add_header("Range", f"bytes={start}-")
        if validator := _validator(origin):
            request.add_header("If-Range", validator)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            _receive(response, part, name, url, start, origin, size, md5)
    except urllib.error.HTTPError as error:
        _handle_status(error, url, part, start, origin, if_missing)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{url}: the server's certificate is not trusted: {error.reason}"
            ) from None
        raise NoConnection(f"the server cannot be reached ({error.reason})") from None
    except TimeoutError:
        raise TransientError(f"no byte for {timeout:g} s") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise TransientError(
            f"the connection broke at byte {part.size:,} ({type(error).__name__})"
        ) from None


def _validator(origin):
    """The version for `If-Range`: a strong ETag, else the date; None if the server gave neither."""
    etag = origin.get("etag") or ""
    return etag if etag.startswith('"') else origin.get("last_modified")


def _can_resume(origin, url, md5):
    """Whether more bytes can be appended: same URL, and another version would be noticed."""
    return origin.get("url") == url and (_validator(origin) is not None or md5 is not None)


def _handle_status(error, url, part, start, origin, if_missing):
    """Raises the error for an HTTP status; returns if it means that all bytes have arrived."""
    if error.code == 416 and start:  # no bytes from `start` on
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if start == (int(total) if total.isdigit() else origin.get("size")):
            return
        part.restart({})
        raise TransientError("the file on the server has changed")
    if error.code in TRANSIENT_STATUS:
        seconds = error.headers.get("Retry-After", "")
        raise TransientError(
            f"the server answers {error.code} {error.reason}",
            float(seconds) if seconds.isdigit() else 0.0,
        )
    if error.code in (404, 410):
        raise Refused(f"{url}: no such file on the server ({error.code})", if_missing)
    reason = str(error.reason).partition("\n")[0]
    kind = LoginRequired if error.code in LOGIN_STATUS else Refused
    raise kind(
        f"{url}: the server answers {error.code} {reason}{_redirection(url, error.url)}",
        "Open the address in a browser to see why",
    )


def _receive(response, part, name, url, start, origin, size, md5):
    """Appends the body of a response to the part file, from `start` on or from the beginning as the
    server decides.
    """
    total = _total_bytes(response)
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        if not content_range.startswith(f"bytes {start}-") or total != origin.get("size"):
            part.restart({})
            raise TransientError(
                f"the server sent another range ({content_range!r}); restarted from the beginning"
            )
    else:
        start = 0
        _refuse_web_page(response, url, name)
    _check_total(total, size, md5, url, name, cut_is_detected=bool(response.chunked))
    if start == 0:
        headers = response.headers
        part.restart(
            {
                "url": url,
                "etag": headers["ETag"],
                "last_modified": headers["Last-Modified"],
                "size": total,
            }
        )
    _check_disk_space(part, total)
    clock = Progress(name, total, start)
    done = start
    while block := response.read1(BLOCK_BYTES):
        if done == 0:
            _refuse_pages_by_content(block, url, name, response.url)
        part.append(block)
        done += len(block)
        clock.show(done)
    clock.clear()
    if total is not None and done < total:
        raise TransientError(f"the connection broke at byte {done:,} of {total:,}")


def _total_bytes(response):
    """The size of the whole file by the response, None if it does not say."""
    text = response.headers.get("Content-Length", "")
    if response.status == 206:
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isdigit() else None


def _check_total(total, size, md5, url, name, cut_is_detected):
    if size is not None and total not in (None, size):
        raise DownloadError(
            f"{url}: the server's file has {total:,} bytes, expected {size:,}: it is another file; "
            f"give the address of the right one with --url {name}=..."
        )
    if total is None and md5 is None and not cut_is_detected:
        raise DownloadError(
            f"{url}: the server does not send the file's size and no MD5 is known, so a cut "
            f"transfer would not be noticed; give the file's MD5 with --md5 {name}=..."
        )


def _check_disk_space(part, total):
    free = shutil.disk_usage(os.path.dirname(part.path)).free
    if total is not None and free < total - part.size:
        raise DownloadError(
            f"{os.path.dirname(part.path)}: {free:,} bytes free, {total - part.size:,} more are "
            "needed; make room or choose another --out_dir"
        )


def _redirection(url, final_url):
    """Where the server redirected to, without the query, which may be long; '' if nowhere."""
    return f" (redirected to {final_url.partition('?')[0]})" if final_url not in (None, url) else ""


def _not_the_file(kind, url, name, what, final_url):
    return kind(
        f"{url}: the server sent {what} instead of {name} (a log-in, a limit reached, a moved file)"
        f"{_redirection(url, final_url)}",
        f"Open the address in a browser, save the file beside the others as {name} and run the "
        f"same command again to have it checked, or give another address: --url {name}=...",
    )


def _refuse_web_page(response, url, name):
    if response.headers.get_content_type() == "text/html" and not name.endswith((".html", ".htm")):
        raise _not_the_file(LoginRequired, url, name, "a web page", response.url)


def _refuse_pages_by_content(block, url, name, final_url):
    start = block[:100].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise _not_the_file(LoginRequired, url, name, "a web page", final_url)
    if start.startswith(b"version https://git-lfs"):
        raise _not_the_file(Refused, url, name, "a Git LFS pointer", final_url)


def md5_of(path, name):
    """The MD5 of a file in hex; `name` is what the progress line calls it."""
    digest = hashlib.md5()
    with open(path, "rb") as file:
        clock = Progress(f"{name}: checking", os.fstat(file.fileno()).st_size)
        while block := file.read(1 << 20):
            digest.update(block)
            clock.show(file.tell())
    clock.clear()
    return digest.hexdigest()


class Progress:
    """One line on a terminal, at most twice a second: bytes, rate, time left."""

    def __init__(self, what, total, start=0):
        self._what, self._total, self._start = what, total, start
        self._started = self._shown = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def show(self, done):
        now = time.monotonic()
        if not self._is_terminal or now - self._shown < 0.5:
            return
        self._shown = now
        rate = (done - self._start) / (now - self._started)
        line = f"{self._what} {done / 1e6:,.1f}"
        if self._total is not None:
            left = (self._total - done) / max(rate, 1.0)
            percent = 100 * done // self._total
            line += f" of {self._total / 1e6:,.1f} MB ({percent} %), {_clock(left)} left"
        print(f"\r{line}, {rate / 1e6:.1f} MB/s\033[K", end="", file=sys.stderr, flush=True)

    def clear(self):
        if self._is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _clock(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def say(line):
    """A line on stderr that stays, after wiping the progress line of a terminal."""
    wipe = "\r\033[K" if sys.stderr.isatty() else ""
    print(wipe + line, file=sys.stderr, flush=True)
