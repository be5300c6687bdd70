"""Prints a SHA-256 over all that the project asks Python about a character, for every code point.

python3.7 tests/reference/character_classes.py   # Unicode 11.0 itself
python3.12 tests/reference/character_classes.py  # by bert/common/unicode_11.py; any Python from 3.9

Two lines: as tokenization.py asks (category, lower case, decomposition; CJK ideographs keep their
own class), and as the sentence splitter asks (patterns, upper or lower case). A character that
Unicode 11 does not assign counts as itself.
"""

import hashlib
import os
import re
import sys
import unicodedata

CODE_POINTS = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]


def tokenizer_class(char):
    text = unicodedata.normalize("NFD", char.lower())
    parts = "".join(part for part in text if unicodedata.category(part) != "Mn")
    return (
        asked_category(char),
        [asked_category(part) for part in parts],
        "" if parts == char else parts,
    )


def asked_category(char):
    """The category as far as tokenization.py tells categories apart."""
    category = unicodedata.category(char)
    return (
        category[0]
        if category[0] == "P"
        else category
        if category in ("Cc", "Cf", "Zs", "Mn")
        else "other"
    )


def splitter_class(char):
    patterns = [bool(re.match(pattern, char)) for pattern in (r"\w", r"\s", r"\d")]
    return (
        patterns,
        char.isupper(),
        char.islower(),
        char.isspace(),
        "" if char.lower() == char else char.lower(),
    )


def main():
    if unicodedata.unidata_version == "11.0.0":
        for_tokenizer = for_splitter = str
    else:
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
        from bert.common.unicode_11 import RECLASSIFIED_LETTERS, Unicode11
        from tokenization import as_unicode_11 as for_tokenizer

        for_splitter = Unicode11(RECLASSIFIED_LETTERS)
    for classify, replace in ((tokenizer_class, for_tokenizer), (splitter_class, for_splitter)):
        digest = hashlib.sha256()
        for code in CODE_POINTS:
            digest.update(repr(classify(replace(chr(code)))).encode("utf-8"))
        print(digest.hexdigest())


if __name__ == "__main__":
    main()
