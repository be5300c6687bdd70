"""Prints a SHA-256 over all that the project asks Python about a character, for every code point.

python3.7 tests/reference/character_classes.py   # Unicode 11.0 itself
python3.12 tests/reference/character_classes.py  # by bert/common/unicode_11.py; any from 3.9 on

Two lines: as tokenization.py asks (category, lower case, decomposition; CJK ideographs keep their
own class), and as the sentence splitter asks (patterns, upper or lower case). A character that
Unicode 11 does not assign counts as itself.
"""

import functools
import hashlib
import os
import re
import sys
import unicodedata

TEXT = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))


def tokenizer_classes(text):
    """The class of each character of a text: what most have in common is written down once."""
    whole = {category: repr_of_class(category, [category]) for category in CATEGORIES}
    decomposed = map(functools.partial(unicodedata.normalize, "NFD"), map(str.lower, text))
    for char, category, parts in zip(text, map(unicodedata.category, text), decomposed):
        if parts == char:
            yield whole[category]
        else:
            rest = "".join(part for part in parts if unicodedata.category(part) != "Mn")
            categories = map(unicodedata.category, rest)
            yield repr_of_class(category, categories, "" if rest == char else rest)


def repr_of_class(category, categories, parts=""):
    categories = [asked_category(part) for part in categories if part != "Mn"]
    return repr((asked_category(category), categories, parts))


def asked_category(category):
    """The category as far as tokenization.py tells categories apart."""
    if category[0] == "P":
        return "P"
    return category if category in ("Cc", "Cf", "Zs", "Mn") else "other"


CATEGORIES = set(map(unicodedata.category, TEXT))


def splitter_classes(text):
    """The class of each character of a text."""
    matches = [map(bool, map(re.compile(pattern).match, text)) for pattern in (r"\w", r"\s", r"\d")]
    cases = [map(method, text) for method in (str.isupper, str.islower, str.isspace)]
    repr_once = functools.lru_cache(maxsize=None)(
        lambda matches, cases, lower: repr((list(matches), *cases, lower))
    )
    for char, found, case, lower in zip(text, zip(*matches), zip(*cases), map(str.lower, text)):
        yield repr_once(found, case, "" if lower == char else lower)


def main():
    if unicodedata.unidata_version == "11.0.0":
        for_tokenizer = for_splitter = str
    else:
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
        from bert.common.unicode_11 import RECLASSIFIED_LETTERS, Unicode11
        from tokenization import as_unicode_11 as for_tokenizer

        for_splitter = Unicode11(RECLASSIFIED_LETTERS)
    for classes, replace in ((tokenizer_classes, for_tokenizer), (splitter_classes, for_splitter)):
        replaced = replace(TEXT)
        assert len(replaced) == len(TEXT)
        different = "".join(dict.fromkeys(replaced))
        class_of = dict(zip(different, classes(different)))
        text = "".join(map(class_of.__getitem__, replaced))
        print(hashlib.sha256(text.encode("utf-8")).hexdigest())


if __name__ == "__main__":
    main()
