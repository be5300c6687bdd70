#!/usr/bin/env python3
"""What has a model learnt? Hides one word in each of ten sentences and shows its guesses, before
and after training.

python3 fill_mask.py --output_dir=quickstart_output/run --text=quickstart_output/results/eval.txt
python3 fill_mask.py --output_dir=runs/large --text=results/eval.txt --num_sentences=100

--output_dir is that of a run of train.py which has ended: its flags.json says what the run started
from, its model/ is what it ended with. The sentences are spread over the articles of the text; the
words are drawn at random, from those that are one piece of the vocabulary. Guesses that are right
stand in [brackets]. The last lines count them, beside what always guessing the most frequent pieces
of the text would give. Writes nothing.
"""

import argparse
import collections
import json
import os
import random
from collections.abc import Sequence
from typing import NamedTuple

from bert.common import cli  # first: it says what to do where packages are missing

# isort: split
from bert.common import quiet_imports  # noqa: F401  before the frameworks

# isort: split
import torch
from transformers import BertConfig, BertForPreTraining, BertTokenizerFast

from bert.common.files import DataError, FlagError, read_bytes
from bert.training.model import build_model, load_model

MIN_PIECES = 8  # of a sentence: a shorter one says too little
MAX_PIECES = 30  # and fits into a line or two


class Hidden(NamedTuple):
    """A sentence with a hidden word."""

    text: str  # with [MASK]
    ids: list[int]
    position: int  # of [MASK] in ids
    word: str


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
    return parser.parse_args(argv)


def hide_words(
    articles: Sequence[Sequence[str]], tokenizer: BertTokenizerFast, count: int, seed: int
) -> list[Hidden]:
    """Returns one word each of `count` sentences, of as many articles as there are.

    articles: their sentences. DataError if they have too few sentences of a fitting length.
    """
    draw = random.Random(seed)
    queues = [draw.sample(article, len(article)) for article in articles]
    found: list[Hidden] = []
    while len(found) < count:
        if not any(queues):
            raise DataError(
                f"found {len(found)} sentences of {MIN_PIECES} to {MAX_PIECES} pieces, expected "
                f"{count}; lower --num_sentences or choose a longer --text"
            )
        for queue in queues:
            while queue and len(found) < count:
                if hidden := hide_word(queue.pop(), tokenizer, draw):
                    found.append(hidden)
                    break
    return found


def hide_word(sentence: str, tokenizer: BertTokenizerFast, draw: random.Random) -> Hidden | None:
    """Returns the sentence without one of its words, None if it is too long or too short."""
    encoded = tokenizer(sentence, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if not MIN_PIECES <= len(ids) - 2 <= MAX_PIECES:  # without [CLS] and [SEP]
        return None
    words = [
        i for i in range(1, len(ids) - 1)
        if pieces[i].isalpha() and not pieces[i + 1].startswith("##")
    ]  # fmt: skip
    if not words:
        return None
    position = draw.choice(words)
    start, end = spans[position]
    ids[position] = tokenizer.mask_token_id
    return Hidden(f"{sentence[:start]}[MASK]{sentence[end:]}", ids, position, pieces[position])


@torch.no_grad()
def guesses(
    model: BertForPreTraining, tokenizer: BertTokenizerFast, hidden: Hidden, count: int
) -> list[str]:
    """Returns the pieces that the model finds most likely for the hidden word, best first."""
    encoded = model.bert(torch.tensor([hidden.ids]))
    logits = model.cls.predictions(encoded.last_hidden_state[0, hidden.position])
    return tokenizer.convert_ids_to_tokens(logits.topk(count).indices.tolist())


def load_both(output_dir: str) -> tuple[BertForPreTraining, BertForPreTraining, BertTokenizerFast]:
    """Returns the model that a run started from, the one that it ended with, and the tokenizer."""
    path, folder = os.path.join(output_dir, "flags.json"), os.path.join(output_dir, "model")
    if not os.path.isfile(path) or not os.path.isdir(folder):
        raise FlagError(
            f"--output_dir: {output_dir} has no flags.json or no model/; expected the folder of a "
            "run of train.py that has ended"
        )
    with open(path) as file:
        flags = json.load(file)["flags"]
    config = BertConfig.from_pretrained(folder, local_files_only=True)
    torch.manual_seed(flags["seed"])
    start = flags["init_checkpoint"]
    before = load_model(start, config) if start else build_model(config)
    after = load_model(folder, config)
    tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
    return before.eval(), after.eval(), tokenizer


def most_frequent(
    articles: Sequence[Sequence[str]], tokenizer: BertTokenizerFast, count: int
) -> list[str]:
    """Returns the most frequent pieces of the text: what a program without any model can guess."""
    pieces: collections.Counter[str] = collections.Counter()
    for article in articles:
        pieces.update(piece for line in article for piece in tokenizer.tokenize(line))
    return [piece for piece, _ in pieces.most_common(count)]


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse_flags(argv)
    for name in ("num_sentences", "num_guesses"):
        if getattr(flags, name) < 1:
            raise FlagError(f"--{name}={getattr(flags, name)}: expected 1 or more")
    text = read_bytes(flags.text).decode(errors="replace")
    articles = [article.splitlines() for article in text.split("\n\n") if article.strip()]
    before, after, tokenizer = load_both(flags.output_dir)
    sentences = hide_words(articles, tokenizer, flags.num_sentences, flags.seed)
    always = most_frequent(articles, tokenizer, flags.num_guesses)
    answers = {
        "before training": [guesses(before, tokenizer, s, flags.num_guesses) for s in sentences],
        "after training": [guesses(after, tokenizer, s, flags.num_guesses) for s in sentences],
    }
    for number, hidden in enumerate(sentences):
        print(f"{hidden.text}    ({hidden.word})")
        for when, lists in answers.items():
            marked = (f"[{word}]" if word == hidden.word else word for word in lists[number])
            print(f"    {when:<16} {'  '.join(marked)}")
    answers[f"always {' '.join(always)}"] = [always] * len(sentences)
    print(f"\nright, of {len(sentences)} hidden words:")
    for when, lists in answers.items():
        first = sum(words[0] == hidden.word for words, hidden in zip(lists, sentences))
        among = sum(hidden.word in words for words, hidden in zip(lists, sentences))
        print(f"    {when:<24} {first:>3} by the first guess, {among:>3} among {flags.num_guesses}")


if __name__ == "__main__":
    cli.run(main)
