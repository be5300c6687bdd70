"""Step 1: removes the document tags and the titles from extracted Wikipedia text (wiki_00 ->
wiki_00.1).

    python3 cleanup_scripts/cleanup_file.py --data 'extracted/*/wiki_*'

Writes <file>.1 beside each extracted file: an empty line where an article begins (its `<doc ...>`
line; the title after it is dropped), no `</doc>` lines, no other empty lines. About 80 MB/s per
core.
"""

import io

import cleanup_io


def remove_tags_and_titles(text: str) -> str:
    """The lines without document tags and titles; an empty line begins each article."""
    kept = []
    lines = io.StringIO(text, newline="\n")
    for line in lines:
        if "<doc" in line:
            kept.append("\n")
            next(lines, None)  # the title
        elif line != "\n" and "</doc>" not in line:
            kept.append(line)
    return "".join(kept)


def main() -> None:
    cleanup_io.transform_files(
        "cleanup_file", __doc__, remove_tags_and_titles, "", ".1", universal_newlines=True
    )


if __name__ == "__main__":
    cleanup_io.run(main)
