"""What a file is that should have been data, by its first bytes."""

import re

GIT_LFS_POINTER = re.compile(rb"version https://git-lfs")
WEB_PAGE = re.compile(rb"\s*<(?i:!doctype|html)")
_KINDS = (
    (
        GIT_LFS_POINTER,
        "a Git LFS pointer, not the data: fetch the file itself with: git lfs pull",
    ),
    (WEB_PAGE, "a web page, not the data: the download failed, repeat it"),
    (re.compile(rb"\x1f\x8b|PK\x03\x04|BZh[1-9]"), "a compressed file: unpack it"),  # gz, zip, bz2
)


def detect_other_format(start: bytes) -> str | None:
    """What a file is by its first bytes (>= 64), if it is not data, and what to do; else None."""
    return next((kind for pattern, kind in _KINDS if pattern.match(start)), None)
