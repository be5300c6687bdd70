"""Lists of MD5s as md5sum writes them."""

import re
from collections.abc import Iterator

from bert.common.files import DataError


def md5_lines(text: str, source: str) -> Iterator[tuple[str, str, str]]:
    """Yields (path, MD5 in lower case, place for messages) of each line `<MD5>  <path>`.

    Skips blank lines; DataError for one of another form. source: named in messages.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        place = f"{source}: line {number}"
        match = re.fullmatch(r"([0-9a-fA-F]{32})\s+\*?(\S.*?)\s*", line)
        if match:
            yield match[2], match[1].lower(), place
        elif line.strip():
            raise DataError(f"{place} is {line[:80]!r}, expected '<MD5>  <path>'")


def parse_md5_list(text: str, source: str) -> dict[str, str]:
    """{path without `./`: MD5}; DataError also for an unsafe path, two MD5s of one, or no line."""
    md5s: dict[str, str] = {}
    for listed, md5, place in md5_lines(text, source):
        path = safe_path(listed, place)
        if md5s.setdefault(path, md5) != md5:
            raise DataError(f"{place}: {path} is listed twice, with two MD5s")
    if not md5s:
        raise DataError(f"{source}: lists no file")
    return md5s


def safe_path(path: str, source: str) -> str:
    """The path without `./`; DataError if it is absolute or has `..` or odd characters."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise DataError(f"{source}: the path {path[:80]!r} leads out of the folder")
    if not parts or not path.isprintable() or "\\" in path:
        raise DataError(f"{source}: {path[:80]!r} is not a plain path")
    return "/".join(parts)
