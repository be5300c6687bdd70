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
from typing import NamedTuple

from part_file import LoginRequired, PartFile, Refused, Unreachable

from bert.common.file_formats import GIT_LFS_POINTER, WEB_PAGE
from bert.common.files import DataError, read_blocks
from bert.common.progress import ByteProgress

BLOCK_BYTES = 1 << 18
LONGEST_WAIT = 60.0  # seconds between two tries
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}  # HTTP: the same request may succeed later
LOGIN_STATUS = {401, 403}
USER_AGENT = "cleanup_scripts/download.py (Python urllib)"


class TransientError(Exception):
    """An error after which another try makes sense."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class NoConnection(TransientError):
    """The server cannot be reached."""


class Source(NamedTuple):
    """A file on a server, and what is known of it: size in bytes, MD5 in hex, None if unknown."""

    url: str
    name: str  # of the file here
    size: int | None
    md5: str | None
    if_missing: str  # what to do when the server has no such file


def fetch(
    url: str,
    path: str,
    size: int | None = None,
    md5: str | None = None,
    retries: int = 8,
    first_wait: float = 1.0,
    timeout: float = 60.0,
    if_missing: str = "",
) -> str:
    """Downloads `url` to `path`, checks it and returns its MD5 in hex.

    size, md5, if_missing: see Source. retries: how often to try again when a try brings no further
    byte. first_wait: seconds before the second try, doubled for each further one. timeout: seconds
    without a byte. Raises DataError.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    source = Source(url, os.path.basename(path), size, md5, if_missing)
    part = PartFile(path)
    try:
        _transfer_with_retries(source, part, retries, first_wait, timeout)
        found = md5_of(part.path, source.name)
        if md5 is not None and found != md5:
            part.remove()
            raise DataError(
                f"{url}: the received file has the MD5 {found}, expected {md5}; it was removed. "
                "Run the same command again; if that fails in the same way, the server has another "
                f"file than the published one: give another address with --url {source.name}=..."
            )
        part.rename_to(path)
        return found
    finally:
        part.close()


def _transfer_with_retries(source, part, retries, first_wait, timeout):
    failures = 0
    while True:
        before = part.size
        try:
            return _transfer(source, part, timeout)
        except TransientError as error:
            failures = 1 if part.size > before else failures + 1
            if failures > retries:
                raise _give_up(source.url, error, failures, part.size) from None
            # Half to the whole of the time, so that many who wait for one server do not all come
            # back at the same moment.
            wait = min(LONGEST_WAIT, first_wait * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
            wait = max(error.retry_after, wait)
            print(
                f"{source.name}: {error}; trying again in {wait:.0f} s (try {failures + 1})",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(wait)


def _give_up(url, error, failures, bytes_kept):
    """The error after the last try."""
    times = "failed once" if failures == 1 else f"failed {failures} times in a row"
    kept = f"{bytes_kept:,} bytes are kept: run the same command again to resume"
    if isinstance(error, NoConnection):
        advice = "Check the network and the proxy (https_proxy)" + (f". {kept}" * bool(bytes_kept))
        return Unreachable(f"{url}: {error}; {times}", advice)
    return Refused(f"{url}: {error}; {times}", kept if bytes_kept else "Run the same command later")


def _transfer(source, part, timeout):
    """One request: gets what is missing, or raises TransientError and keeps what arrived."""
    request = urllib.request.Request(
        source.url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    )
    origin = part.origin()
    start = part.size if _can_resume(origin, source) else 0
    if start:
        request.add_header("Range", f"bytes={start}-")
        if validator := _validator(origin):
            request.add_header("If-Range", validator)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            _receive(response, source, part, start, origin)
    except urllib.error.HTTPError as error:
        _handle_status(error, source, part, start, origin)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DataError(
                f"{source.url}: the server's certificate is not trusted: {error.reason}"
            ) from None
        raise NoConnection(f"the server cannot be reached ({error.reason})") from None
    except TimeoutError:
        raise TransientError(f"no data for {timeout:g} s") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise TransientError(
            f"the connection broke at byte {part.size:,} ({type(error).__name__})"
        ) from None


def _validator(origin):
    """The version for `If-Range`: a strong ETag, else the date; None if the server gave neither."""
    etag = origin.get("etag") or ""
    return etag if etag.startswith('"') else origin.get("last_modified")


def _can_resume(origin, source):
    """Whether more bytes can be appended: same URL, and another version would be noticed."""
    is_noticed = _validator(origin) is not None or source.md5 is not None
    return origin.get("url") == source.url and is_noticed


def _handle_status(error, source, part, start, origin):
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
        raise Refused(f"{source.url}: no such file on the server ({error.code})", source.if_missing)
    reason = str(error.reason).partition("\n")[0]
    redirection = _redirection(source.url, error.url)
    kind = LoginRequired if error.code in LOGIN_STATUS else Refused
    raise kind(
        f"{source.url}: the server answers {error.code} {reason}{redirection}",
        "Open the address in a browser to see why",
    )


def _receive(response, source, part, start, origin):
    """Adds a response's body to the part file, from `start` or from the beginning."""
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
        is_page = response.headers.get_content_type() == "text/html"
        if is_page and not source.name.endswith((".html", ".htm")):
            raise _not_the_file(LoginRequired, source, "a web page", response.url)
    _check_total(total, source, cut_is_detected=bool(response.chunked))
    if start == 0:
        headers = response.headers
        part.restart(
            {
                "url": source.url,
                "etag": headers["ETag"],
                "last_modified": headers["Last-Modified"],
                "size": total,
            }
        )
    _check_disk_space(part, total)
    done = start
    with ByteProgress(source.name, total, start) as progress:
        while block := response.read1(BLOCK_BYTES):
            if done == 0:
                _refuse_by_content(block, source, response.url)
            part.append(block)
            done += len(block)
            progress.show_bytes(done)
    if total is not None and done < total:
        raise TransientError(f"the connection broke at byte {done:,} of {total:,}")


def _total_bytes(response):
    """The size of the whole file by the response, None if it does not say."""
    text = response.headers.get("Content-Length", "")
    if response.status == 206:
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isdigit() else None


def _check_total(total, source, cut_is_detected):
    if source.size is not None and total not in (None, source.size):
        raise DataError(
            f"{source.url}: the server's file has {total:,} bytes, expected {source.size:,}: it is "
            f"another file; give the address of the right one with --url {source.name}=..."
        )
    if total is None and source.md5 is None and not cut_is_detected:
        raise DataError(
            f"{source.url}: the server does not send the file's size and no MD5 is known, so an "
            "incomplete download would not be noticed; give the file's MD5 with "
            f"--md5 {source.name}=..."
        )


def _check_disk_space(part, total):
    folder = os.path.dirname(part.path)
    free = shutil.disk_usage(folder).free
    if total is not None and free < total - part.size:
        raise DataError(
            f"{folder}: {free:,} bytes free, {total - part.size:,} more are "
            "needed; make room or choose another --out_dir"
        )


def _redirection(url, final_url):
    """Where the server redirected to, without the query, which may be long; '' if nowhere."""
    return f" (redirected to {final_url.partition('?')[0]})" if final_url not in (None, url) else ""


def _not_the_file(kind, source, what, final_url):
    name = source.name
    return kind(
        f"{source.url}: the server sent {what} instead of {name} (log-in needed, limit reached "
        f"or file moved){_redirection(source.url, final_url)}",
        f"Open the address in a browser, save the file beside the others as {name} and run the "
        f"same command again to have it checked, or give another address: --url {name}=...",
    )


def _refuse_by_content(block, source, final_url):
    if WEB_PAGE.match(block):
        raise _not_the_file(LoginRequired, source, "a web page", final_url)
    if GIT_LFS_POINTER.match(block):
        raise _not_the_file(Refused, source, "a Git LFS pointer", final_url)


def md5_of(path: str, name: str) -> str:
    """The MD5 of a file in hex; `name` is what the progress line calls it."""
    digest, done = hashlib.md5(), 0
    with ByteProgress(f"{name}: checking", os.path.getsize(path)) as progress:
        for block in read_blocks(path):
            digest.update(block)
            done += len(block)
            progress.show_bytes(done)
    return digest.hexdigest()
