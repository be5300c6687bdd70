"""Characters as Unicode 11.0 has them, on every Python.

MLPerf made its data with Python 3.7, whose tables are those of Unicode 11.0. Later Pythons know
more letters, marks and punctuation. One character that is tokenized differently shifts the stream
of random numbers, and so changes all examples after it. Therefore, before anything looks at a
character, one that Unicode 11 does not know is replaced by one that means nothing in any version.

    >>> Unicode11({})("U+1B4E is punctuation since Unicode 16: \\u1b4e")
    'U+1B4E is punctuation since Unicode 16: \\ue000'

The table of these characters comes from a Python 3.7; tests/reference/unicode_11_table.py makes it.
"""

import bisect
from collections.abc import Iterable, Mapping

from bert.common.unicode_11_table import UNASSIGNED

MEANINGLESS = 0xE000  # private use: no letter, mark, punctuation or space, and without another case

# Characters of Unicode 11 whose class changed later, each with a character that kept the old class.
# Found by comparing every code point with Python 3.7: tests/reference/character_classes.py.
RECLASSIFIED_PUNCTUATION = {0x166D: 0x166E, 0x1734: 0x1733, 0xA9BD: 0xA9BE, 0x055F: 0x055E}
RECLASSIFIED_LETTERS = {0x1CF2: 0x1CE1, 0x1CF3: 0x1CE1, 0x10FC: 0x02EC}

_ASCII = bytes(range(0x80))


def _edges(ranges):
    """[first, last + 1, ...] of ascending inclusive ranges."""
    return [edge for first, last in ranges for edge in (first, last + 1)]


def _is_in(code, edges):
    """Whether a code point lies in one of the ranges."""
    return bisect.bisect_right(edges, code) % 2 == 1


_UNASSIGNED_EDGES = _edges(UNASSIGNED)


class Unicode11(dict):
    """Replaces characters, one for one, so that Python classifies them as Unicode 11.0 does.

    `reclassified`: {code point: its replacement}. `kept_ranges`: inclusive ranges of code points
    that are left as they are. As a dict it is what `str.translate` takes; the entry of a code point
    is made when it is first asked for.
    """

    def __init__(
        self, reclassified: Mapping[int, int], kept_ranges: Iterable[tuple[int, int]] = ()
    ) -> None:
        super().__init__(reclassified)
        self._kept_edges = _edges(sorted(kept_ranges))

    def __call__(self, text: str) -> str:
        """Returns the text with its characters replaced; its length is the same."""
        if text.isascii():
            return text
        # Few texts hold such a character. To see that one holds none is some 10 times faster than
        # to translate it.
        others = (
            text.encode("utf-8", "surrogatepass")
            .translate(None, delete=_ASCII)
            .decode("utf-8", "surrogatepass")
        )
        return text if others.translate(self) == others else text.translate(self)

    def __missing__(self, code: int) -> int:
        is_replaced = _is_in(code, _UNASSIGNED_EDGES) and not _is_in(code, self._kept_edges)
        self[code] = MEANINGLESS if is_replaced else code
        return self[code]
