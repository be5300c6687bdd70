"""What a file is that should have been data, as its first bytes tell."""

import re

_KINDS = (
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, not the data: fetch the file itself with: git lfs pull",
    ),
    (rb"\s*<(?i:!doctype|html)", "a web page, not the data: the download failed, repeat it"),
    (rb"\x1f\x8b|PK\x03\x04|BZh[1-9]", "a compressed file: unpack it"),  # gzip, zip, bzip2
)


def detect_other_format(start):
    """What the first bytes (>= 64) of a file tell that it is instead of data, and what to do; None
    if they tell nothing.
    """
    return next((kind for pattern, kind in _KINDS if re.match(pattern, start)), None)
