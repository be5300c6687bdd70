"""Is a file missing, does one not belong in the folder: what names say."""

import re
from collections.abc import Collection, Sequence

from bert.verification import published
from bert.verification.check_table import Row, judged

PART = re.compile(r"part-(\d{5})-of-(\d{5})$")


def names_row(
    section: str,
    names: Sequence[str],
    own_data: bool,
    others: Collection[str] = (),
    written: Collection[str] = (),
    may_lack: Collection[int] = (),
) -> Row:
    """Whether no part-XXXXX-of-YYYYY is missing. others: names that may be there too; written:
    those that have a manifest or a text; may_lack: numbers of parts that were never made.

    Of data of one's own, YYYYY = 500 says nothing: it is the default of do_gather.py.
    """
    matches = [PART.match(name) for name in names]
    parts = [(int(match[1]), int(match[2])) for match in matches if match]
    if not parts and section != "results":
        notes = [
            f"{name}: missing, its manifest or its text is there; make it again"
            for name in sorted(set(written) - set(names))
        ]
        expected = "not named part-XXXXX-of-YYYYY"
        return judged(section, "files", not notes, f"{len(names):,}", expected, notes)
    foreign = [name for name, match in zip(names, matches) if not match and name not in others]
    notes = [
        f"{name}: does not belong here, and would be read with the folder; remove it"
        for name in foreign
    ]
    totals = sorted({total for _, total in parts})
    if len(totals) > 1:
        sets = ", ".join(f"-of-{total:05d}" for total in totals)
        notes.append(f"parts of several sets in one folder: {sets}; keep one of them")
    total = totals[-1] if totals else published.NUM_PARTS
    numbers = {number for number, _ in parts}
    end = max(numbers, default=-1) + 1
    if not (own_data and total == published.NUM_PARTS):
        end = max(total, end)
    missing = [number for number in range(end) if number not in numbers | set(may_lack)]
    if missing:
        hint = "make them, or fetch them again"
        if own_data and missing[0] > max(numbers, default=-1):
            hint += "; if there never were more, give the parts by a pattern"
        notes.insert(0, f"missing: {ranges(missing, total)}; {hint}")
    notes += [f"{name}: missing" for name in others if name not in names]
    notes += [
        f"{name}: missing, its manifest or its text is there; make it again"
        for name in sorted(written)
        if name not in names and not (PART.match(name) and int(name[5:10]) in missing)
    ]
    found = f"{len(parts):,} parts" + (f" and {len(foreign):,} others" if foreign else "")
    return judged(
        section,
        "files",
        not notes,
        found,
        f"{end - len(set(may_lack) & set(range(end))):,} parts",
        notes,
    )


def may_lack_the_last(names: Sequence[str], written: Collection[str]) -> bool:
    """Whether names and manifests say nothing of a last file that is missing."""
    totals = [int(match[2]) for name in names if (match := PART.match(name))]
    return not written and (not totals or max(totals) == published.NUM_PARTS)


def chosen_files_row(section: str, paths: Sequence[str]) -> Row:
    """Of files that the user listed, none can be missing."""
    return judged(section, "files", True, f"{len(paths):,}", "given one by one or by a pattern")


def ranges(numbers: Sequence[int], total: int) -> str:
    """[3, 4, 5, 9] -> 'part-00003 to part-00005, part-00009 (of 500)'"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(
        f"part-{first:05d}" if first == last else f"part-{first:05d} to part-{last:05d}"
        for first, last in runs[:5]
    )
    more = f" and more, {len(numbers)} in all" if len(runs) > 5 else ""
    return f"{shown}{more} (of {total})"
