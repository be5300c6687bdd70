"""Step 2: removes what is left of wiki markup and HTML tags, line by line (wiki_00.1 -> wiki_00.2).

    python3 cleanup_scripts/clean_markup.py --data 'extracted/*/wiki_*'

Writes <file>.2 beside each extracted file. The rules and their order are those of MLPerf's chain of
60 sed and grep commands, its oddities included (`<sup>` goes, `<SUP>` stays), because the published
data were made by it. A line ends at "\\n" only, the last line too. About 100 MB/s per core.
"""

import re

import cleanup_io

Rule = tuple[re.Pattern[str], str]

DROPPED_LINE = re.compile(r"<doc [^>]*>\Z|.*\[\[Category:[^\]\[]*\]\]", re.DOTALL)


def compiled(*rules: tuple[str, str]) -> list[Rule]:
    """[(compiled pattern, replacement)]; each is applied to the result of the one before."""
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


def deleted(*patterns: str) -> list[Rule]:
    return compiled(*((pattern, "") for pattern in patterns))


def both_tags(*names: str) -> list[str]:
    return [tag for name in names for tag in (f"<{name}>", f"</{name}>")]


LINK = (r"\[\[([^\]|\[]*)\]\]", r"\1")  # [[Alberta]]
LABELLED_LINK = (r"\[\[[^\]|\[]*\|([^\]|\[]*)\]\]", r"\1")  # [[Alberta|the province]]

BRACKET_RULES = [
    *compiled(LINK, LINK, LABELLED_LINK, LABELLED_LINK),
    *deleted(
        r"\[\[:*[Ff]ile:[^\]\[]*\]\]", r"\[\[[Mm]edia:[^\]\[]*\]\]", r"\[\[[Ii]mage:[^\]\[]*\]\]"
    ),
    *compiled((r"\[([^\]|\[]*)\]", r"\1")),
    *deleted(r"\[\[[^\]\[]*\]\]"),
]
ALT_RULES = deleted("alt=")
TAG_RULES = [
    *compiled(("</doc>", "\r")),
    *compiled((r"<chem([^<]*)</chem>", r"\1"), (r"<ins([^<]*)</ins>", r"\1")),
    *deleted(r"<, ref [^<]*</ref>", r"<includeonly[^<]*</includeonly>", r"<graph[^<]*</graph>"),
    # greedy: to the last "/>" of the line before a backslash
    *deleted(r"<section[^\\]*/>", r"<meta[^\\]*/>", r"<hr[^\\]*/>"),
    *deleted(r"<gallery[^>]*>", r"<ref[^<]*</ref>", r"<ref[^>]*>", r"<http[^>]*>", r"<Ref[^>]*>"),
    *deleted(r"<mapframe [^/]*/>", r"<mapframe[^>]*>", r"</mapframe>"),
    *deleted(*both_tags("poem", "math", "ref")),
    *deleted(r"<div[^>]*>", r"</div[^>]*>", r"</div style>", r"</div>"),
    *deleted(
        *both_tags("sup", "br", "BR", "Br", "del", "nowiki", "NOWIKI", "onlyinclude"),
        *both_tags("includeonly", "small", "chem", "noinclude", "gallery"),
    ),
    *deleted(
        r"<graph>\{", r"<graph>", r"\}</graph>", r"</graph>", r"</references>", r"<poem [^>]*>"
    ),
]
# A line without the sign cannot match the rules beside it, and no rule makes a sign that was not
# there.
RULES_BY_SIGN = [("[", BRACKET_RULES), ("alt=", ALT_RULES), ("<", TAG_RULES)]


def clean_line(line: str) -> str | None:
    """The line without its markup, or None if it is dropped."""
    if DROPPED_LINE.match(line):
        return None
    for sign, rules in RULES_BY_SIGN:
        if sign in line:
            for pattern, replacement in rules:
                line = pattern.sub(replacement, line)
    return line


def remove_markup(text: str) -> str:
    """clean_line for each line of the text."""
    lines = text.removesuffix("\n").split("\n") if text else []
    cleaned = (
        clean_line(line) if "<" in line or "[" in line or "alt=" in line else line for line in lines
    )
    return "".join(line + "\n" for line in cleaned if line is not None)


def main() -> None:
    cleanup_io.transform_files("clean_markup", __doc__, remove_markup, ".1", ".2")


if __name__ == "__main__":
    cleanup_io.run(main)
