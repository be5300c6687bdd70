"""Step 3: one sentence per line (wiki_00.2 -> wiki_00.3).

    python3 cleanup_scripts/do_sentence_segmentation.py --data 'extracted/*/wiki_*'

Writes <file>.3 beside each extracted file: the sentences of each line, as NLTK 3.4.5's Punkt finds
them in English, one on a line; empty lines stay, and one more ends the file. The slow step of the
chain after the extraction, about 16 MB/s per core. Nothing is downloaded.
"""

import functools
import io

import cleanup_io
import punkt_3_4_5


def segment(text):
    """The text with each sentence on a line of its own, and an empty line after the last."""
    tokenizer = punkt_3_4_5.english_tokenizer()
    lines = []
    for line in io.StringIO(text, newline="\n"):
        if line == "\n":
            lines.append("")
        else:
            lines.extend(sentence.strip() for sentence in tokenizer.tokenize(line))
    return "\n".join([*lines, "", ""])


def main():
    args = cleanup_io.step_parser(__doc__, input_suffix=".2", output_suffix=".3").parse_args()
    files, problems = cleanup_io.check_inputs(args)
    cleanup_io.exit_if(problems)
    punkt_3_4_5.english_tokenizer()  # loaded once, before the worker processes start
    step = functools.partial(
        cleanup_io.transform_file,
        segment,
        args.input_suffix,
        args.output_suffix,
        universal_newlines=True,
    )
    return cleanup_io.run_step("do_sentence_segmentation", step, files, args)


if __name__ == "__main__":
    cleanup_io.run(main)
