"""Lists of MD5s as md5sum writes them. Imported by other scripts here, never run."""

import re

from bert.common.files import DataError


def parse_md5_list(text: str, source: str) -> dict[str, str]:
    """{path: MD5} of lines `<MD5>  <path>`, where the path may begin with `./`.

    DataError if a line has another form or a path leads out of the folder. source: named in
    the error.
    """
    md5s: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{32})\s+\*?(\S.*?)\s*", line)
        if not match:
            raise DataError(f"{source}: line {number} is {line[:80]!r}, expected '<MD5>  ./<path>'")
        path = safe_path(match[2], f"{source}: line {number}")
        if md5s.setdefault(path, match[1].lower()) != match[1].lower():
            raise DataError(f"{source}: line {number}: {path} is listed twice, with two MD5s")
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
