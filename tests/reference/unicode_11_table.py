"""Prints bert/common/unicode_11_table.py: the code points that Unicode 11.0 leaves unassigned, by a
Python that has it.

python3.7 tests/reference/unicode_11_table.py > bert/common/unicode_11_table.py
"""

import itertools
import sys
import textwrap
import unicodedata

MODULE = '''\
"""Code points that Unicode 11.0 leaves unassigned. Made by tests/reference/unicode_11_table.py."""

# Hexadecimal; FIRST-LAST is an inclusive range.
_CODE_POINTS = """
{}
"""
# Ascending (first, last), inclusive.
UNASSIGNED = tuple(
    (int(item.split("-")[0], 16), int(item.split("-")[-1], 16)) for item in _CODE_POINTS.split()
)
'''


def main():
    if unicodedata.unidata_version != "11.0.0":
        sys.exit(
            f"error: this Python has Unicode {unicodedata.unidata_version}; "
            "the table comes from a Python 3.7"
        )
    items = []
    characters = map(chr, range(sys.maxunicode + 1))
    for category, group in itertools.groupby(characters, unicodedata.category):
        if category == "Cn":
            codes = [f"{ord(character):04X}" for character in group]
            items.append(codes[0] if len(codes) == 1 else f"{codes[0]}-{codes[-1]}")
    print(MODULE.format(textwrap.fill(" ".join(items), 100, break_on_hyphens=False)), end="")


if __name__ == "__main__":
    main()
