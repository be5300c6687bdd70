#!/usr/bin/env python3
"""What has a model learnt? Hides one word in each of ten sentences and shows its guesses, before
and after training.

python3 fill_mask.py --output_dir=quickstart_output/run --text=quickstart_output/results/eval.txt
python3 fill_mask.py --output_dir=runs/large --text=results/eval.txt --num_sentences=100

--output_dir is that of a run of train.py which has ended: its flags.json says what the run started
from, its model/ is what it ended with. The sentences are spread over the articles of the text; the
words are drawn at random, from those that are one piece of the vocabulary. Guesses that are right
stand in [brackets]. The last lines count them, beside what always guessing the most frequent words
of the text would give. --card also puts this into the model card, model/README.md.
"""

import argparse
import os
import re
from collections.abc import Sequence

from bert.common import cli
from bert.common.files import DataError, FlagError, raise_if_any, read_bytes
from bert.common.path_flags import expand_patterns


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    add("--output_dir", required=True, metavar="FOLDER", help="of a run of train.py")
    add("--text", required=True, metavar="FILE",
        help="one sentence a line, a blank line after each article, such as results/eval.txt; the "
             "model should not have been trained on it")  # fmt: skip
    add("--num_sentences", type=int, default=10, help="(default: %(default)s)")
    add("--num_guesses", type=int, default=5, help="for each sentence (default: %(default)s)")
    add("--seed", type=int, default=12345,
        help="of the choice of sentences and words (default: %(default)s)")  # fmt: skip
    cli.add_boolean_flag(parser, "card", False, "put the table into the model card too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    problems = [
        f"--{name}={getattr(flags, name)}: expected 1 or more"
        for name in ("num_sentences", "num_guesses")
        if getattr(flags, name) < 1
    ]
    paths: list[str] = []
    try:
        paths = expand_patterns(flags.text)
    except DataError as error:
        problems.append(f"--text: {error}")
    if len(paths) > 1:
        problems.append(f"--text: {flags.text} are {len(paths)} files, expected one")
    raise_if_any(problems, FlagError)
    # Not before the flags are known to be right: the frameworks take 7 s of CPU.
    with cli.imports_without_garbage_collection():
        from bert.training import hidden_words
        from bert.training.model_card import add_section

    text = read_bytes(paths[0]).decode(errors="replace")
    articles = [article.split("\n") for article in re.split(r"\n\s*\n", text)]
    table = hidden_words.make_table(
        flags.output_dir, articles, flags.num_sentences, flags.num_guesses, flags.seed
    )
    print(table.as_text())
    if flags.card:
        add_section(os.path.join(flags.output_dir, "model"), "Hidden words", table.as_markdown())


if __name__ == "__main__":
    cli.run(main)
