"""Step 3: one sentence per line (wiki_00.2 -> wiki_00.3).

    python3 cleanup_scripts/do_sentence_segmentation.py --data 'extracted/*/wiki_*'

Writes <file>.3 beside each extracted file: the sentences of each line, as NLTK 3.4.5's Punkt finds
them in English, one on a line; empty lines stay, and one more ends the file. The slow step of the
chain after the extraction, about 16 MB/s per core. Nothing is downloaded.
"""

import io

import cleanup_io


def segment(text: str) -> str:
    """The text with each sentence on a line of its own, and an empty line after the last."""
    import punkt_3_4_5  # NLTK takes 1.5 s of CPU, for which --help does not wait

    tokenizer = punkt_3_4_5.english_tokenizer()
    lines = []
    for line in io.StringIO(text, newline="\n"):
        if line == "\n":
            lines.append("")
        else:
            lines.extend(sentence.strip() for sentence in tokenizer.tokenize(line))
    return "\n".join([*lines, "", ""])


def main() -> None:
    cleanup_io.transform_files(
        "do_sentence_segmentation", __doc__, segment, ".2", ".3", universal_newlines=True,
        slow_imports=["punkt_3_4_5"],
    )  # fmt: skip


if __name__ == "__main__":
    cleanup_io.run(main)
