"""Step 1: removes the document tags and the titles from extracted Wikipedia text (wiki_00 ->
wiki_00.1).

    python3 cleanup_scripts/cleanup_file.py --data 'extracted/*/wiki_*'

Writes <file>.1 beside each extracted file: an empty line where an article begins (its `<doc ...>`
line; the title after it is dropped), no `</doc>` lines, no other empty lines. About 80 MB/s per
core.
"""

import functools
import io

import cleanup_io


def remove_tags_and_titles(text):
    """The lines of an extracted file without document tags and titles; the only empty lines begin
    the articles.
    """
    kept = []
    lines = io.StringIO(text, newline="\n")
    for line in lines:
        if "<doc" in line:
            kept.append("\n")
            next(lines, None)  # the title
        elif line != "\n" and "</doc>" not in line:
            kept.append(line)
    return "".join(kept)


def main():
    args = cleanup_io.step_parser(__doc__, input_suffix="", output_suffix=".1").parse_args()
    files, problems = cleanup_io.check_inputs(args)
    cleanup_io.exit_if(problems)
    step = functools.partial(
        cleanup_io.transform_file,
        remove_tags_and_titles,
        args.input_suffix,
        args.output_suffix,
        universal_newlines=True,
    )
    return cleanup_io.run_step("cleanup_file", step, files, args)


if __name__ == "__main__":
    cleanup_io.run(main)
