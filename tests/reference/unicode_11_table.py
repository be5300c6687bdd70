"""Prints bert/common/unicode_11_table.py: the code points that Unicode 11.0 leaves unassigned, by a
Python that has it.

python3.7 tests/reference/unicode_11_table.py > bert/common/unicode_11_table.py
"""

import sys
import unicodedata


def main():
    if unicodedata.unidata_version != "11.0.0":
        sys.exit(
            f"error: this Python has Unicode {unicodedata.unidata_version}; "
            "the table comes from a Python 3.7"
        )
    is_unassigned = [
        unicodedata.category(chr(code)) == "Cn" for code in range(sys.maxunicode + 1)
    ] + [False]
    firsts = [
        code
        for code in range(1, sys.maxunicode + 1)
        if is_unassigned[code] and not is_unassigned[code - 1]
    ]
    lasts = [
        code
        for code in range(sys.maxunicode + 1)
        if is_unassigned[code] and not is_unassigned[code + 1]
    ]
    print(
        '"""Code points that Unicode 11.0 leaves unassigned. Made by '
        'tests/reference/unicode_11_table.py."""'
    )
    print("\n# Inclusive ranges.\nUNASSIGNED = (")
    pairs = [f"(0x{first:04X}, 0x{last:04X})," for first, last in zip(firsts, lasts)]
    for start in range(0, len(pairs), 4):
        print("    " + " ".join(pairs[start : start + 4]))
    print(")  # fmt: skip")


if __name__ == "__main__":
    main()
