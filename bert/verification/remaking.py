"""Parts that were made again from their text, compared with those of the set, in any format.

Nothing here opens a file.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bert.verification.check_table import DIFFERS, FAILED, Row, judged
from bert.verification.file_report import TFRecordReport, digest_of_order

_SAME, _REORDERED, _CUT, _SWAPPED = "same", "reordered", "cut", "swapped"


class Remade(NamedTuple):
    """A part of the set, beside the one made again of the text of its name."""

    found: TFRecordReport
    num_examples: int  # of the one made again, as what follows
    order: str
    order_of_first: str  # of as many examples as the found one has
    sketch: np.ndarray

    @property
    def name(self) -> str:
        return os.path.basename(self.found.path)

    @property
    def is_equal(self) -> bool:
        return self.found.order == self.order


def compared_with(found: TFRecordReport, made: TFRecordReport) -> Remade:
    """made: with its `hashes`."""
    first = digest_of_order(made.hashes[: found.num_examples])
    return Remade(found, made.num_examples, made.order, first, made.sketch)


def remade_row(
    section: str, remade: Sequence[Remade], settings: Mapping, is_known: bool, own_data: bool
) -> tuple[Row | None, list[str], list[str]]:
    """is_known: the files record their settings. Otherwise these are assumed; parts that agree
    confirm them.

    Returns (row, None if the guess was wrong; likely causes; what could not be checked).
    """
    owners = {one.order: one.name for one in remade}
    kinds = [_kind(one, owners) for one in remade]
    wrong = [(one, kind) for one, kind in zip(remade, kinds) if kind != _SAME]
    flags = " ".join(
        f"--{name}={settings[name]}" for name in ("random_seed", "dupe_factor", "short_seq_prob")
    )
    cause = [_cause(remade, settings)] if wrong and not any(kinds) else []
    if cause and own_data and not is_known:
        left = f"the order of the examples: the parts were not made with {flags}: give their flags"
        return None, [], [f"{left} ({cause[0]})"]
    notes = [_note(one, kind, owners) for one, kind in wrong]
    status = DIFFERS if cause and not is_known else FAILED
    found = f"{len(remade) - len(wrong):,} of {len(remade):,} parts equal"
    expected = f"made again from --results, {flags}"
    row = judged(section, "made again", not wrong, found, expected, notes, status)
    return row, cause, []


def _kind(one, owners):
    """Returns one of the words above, "" for a part that has other examples."""
    found = one.found
    if one.is_equal:
        return _SAME
    if found.order in owners:
        return _SWAPPED
    if found.num_examples == one.num_examples and np.array_equal(found.sketch, one.sketch):
        return _REORDERED
    if 0 < found.num_examples < one.num_examples and found.order == one.order_of_first:
        return _CUT
    return ""


def _note(one, kind, owners):
    what = {
        _REORDERED: "its records are in another order",
        _CUT: f"truncated after {one.found.num_examples:,} of {one.num_examples:,} records",
        _SWAPPED: f"it has the examples of {owners.get(one.found.order)}: swapped",
        "": f"{one.found.num_examples:,} examples, not the {one.num_examples:,} of its text",
    }[kind]
    return f"{one.name}: {what}; make it again"


def _cause(remade, settings):
    """Why no part has the examples that its text and these settings give."""
    dupe_factor = settings["dupe_factor"]
    total = max(1, sum(one.num_examples for one in remade))
    share = sum(one.found.num_examples for one in remade) / total
    by_chance = max(0.03, total**-0.5)  # other seeds cut the text a little differently
    copies = round(share * dupe_factor)
    percent = f"{100 * share:.0f} % of the examples that --dupe_factor={dupe_factor} gives"
    if abs(share - 1) < by_chance:
        return (
            f"{percent}, but other ones: another --random_seed than {settings['random_seed']}, "
            "--short_seq_prob or vocabulary, or text that differs a little"
        )
    if copies >= 1 and abs(share * dupe_factor - copies) < by_chance * copies:
        return f"{percent}: --dupe_factor={copies}"
    return f"{percent}: truncated, or made of other text or with another --max_seq_length"
