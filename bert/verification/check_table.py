"""The outcome of many checks as a table for people or JSON for scripts."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TextIO

OK, FAILED, DIFFERS = "ok", "FAILED", "differs"
_COLOURS = {OK: "\033[32m", FAILED: "\033[1;31m", DIFFERS: "\033[33m"}
_END_OF_COLOUR = "\033[0m"
_MAX_NOTES = 5  # a row shows; --json has all


class Row(NamedTuple):
    """One check: OK, FAILED (the data are corrupt) or DIFFERS (whole, but not as expected)."""

    section: str
    check: str
    status: str
    found: str
    expected: str = ""
    notes: tuple = ()  # messages: what exactly, and what to do


def judged(
    section: str,
    check: str,
    is_right: bool,
    found: object,
    expected: object = "",
    notes: Iterable[str] = (),
    otherwise: str = FAILED,
) -> Row:
    """Returns the row of a check: OK, or `otherwise` where it is not right."""
    status = OK if is_right else otherwise
    return Row(section, check, status, str(found), str(expected), tuple(notes))


def compared(section: str, check: str, found: str, expected: str, notes: Iterable[str] = ()) -> Row:
    """Returns the row of a comparison: OK if both texts are equal, else DIFFERS."""
    return judged(section, check, found == expected, found, expected, notes, DIFFERS)


def has_colours(stream: TextIO) -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_table(
    rows: Sequence[Row], stream: TextIO | None = None, not_checked: Sequence[str] = ()
) -> None:
    """Prints a line for each row, under the name of its section; its notes follow it. Then what was
    not checked.
    """
    stream = stream or sys.stdout
    is_coloured = has_colours(stream)
    widths = [max(len(getattr(row, column)) for row in rows) for column in ("check", "found")]
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            print(f"\n{section}", file=stream)
        status = f"{row.status:<7}"
        if is_coloured:
            status = f"{_COLOURS[row.status]}{status}{_END_OF_COLOUR}"
        found = f"{row.check:<{widths[0]}}  {row.found:<{widths[1]}}"
        word = "expected " if row.expected and row.status != OK else ""
        print(f"  {status}  {found}  {word}{row.expected}".rstrip(), file=stream)
        notes = [*row.notes[:_MAX_NOTES]]
        if len(row.notes) > _MAX_NOTES:
            notes.append(f"and {len(row.notes) - _MAX_NOTES:,} more; --json shows all")
        for note in notes:
            print(f"           {note}", file=stream)
    if not_checked:
        print("\nnot checked", file=stream)
    for text in not_checked:
        print(f"  -        {text}", file=stream)


def as_json(rows: Iterable[Row], **more: Any) -> str:
    return json.dumps({**more, "rows": [row._asdict() for row in rows]}, indent=2)
