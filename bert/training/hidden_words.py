"""Sentences with a hidden word, and what a model guesses for it."""

import collections
import os
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import BertConfig, BertForPreTraining, BertTokenizerFast

from bert.common.files import DataError, FlagError
from bert.training.flags_file import flags_path, read_record
from bert.training.model import build_model, load_model

MIN_PIECES = 8  # of a sentence: a shorter one says too little
MAX_PIECES = 30  # and fits into a line or two


class Hidden(NamedTuple):
    """A sentence with a hidden word."""

    text: str  # with [MASK]
    ids: list[int]
    position: int  # of [MASK] in ids
    word: str


class Table(NamedTuple):
    """Hidden words with the guesses of two models, and those of a program without any model."""

    sentences: Sequence[Hidden]
    before: Sequence[list[str]]  # guesses for each sentence, best first
    after: Sequence[list[str]]
    always: list[str]

    def as_text(self) -> str:
        """Returns lines for a terminal; right guesses stand in [brackets]."""
        lines = []
        for hidden, *answers in zip(self.sentences, self.before, self.after):
            lines.append(f"{hidden.text}    ({hidden.word})")
            for when, words in zip(("before training", "after training"), answers):
                marked = (f"[{word}]" if word == hidden.word else word for word in words)
                lines.append(f"    {when:<16} {'  '.join(marked)}")
        lines += ["", f"right, of {len(self.sentences)} hidden words:"]
        lines += [
            f"    {who:<24} {first:>3} by the first guess, {among:>3} among {len(self.always)}"
            for who, first, among in self._counts()
        ]
        return "\n".join(lines)

    def as_markdown(self) -> str:
        """Returns the same for a model card; right guesses are bold."""
        bar = r"\|"  # in a table of Markdown, also in code
        lines = ["| sentence | hidden | before training | after training |", "|---|---|---|---|"]
        for hidden, *answers in zip(self.sentences, self.before, self.after):
            cells = [hidden.text, hidden.word] + [
                " ".join(f"**`{word}`**" if word == hidden.word else f"`{word}`" for word in words)
                for words in answers
            ]
            lines.append(f"| {' | '.join(cell.replace('|', bar) for cell in cells)} |")
        lines += ["", f"Right, of {len(self.sentences)} hidden words:", ""]
        lines += [f"| | first guess | among {len(self.always)} |", "|---|---|---|"]
        lines += [f"| {who} | {first} | {among} |" for who, first, among in self._counts()]
        return "\n".join(lines)

    def _counts(self):
        """Returns (who guesses, right by the first guess, right by any)."""
        answers = {
            "before training": self.before,
            "after training": self.after,
            f"always {' '.join(self.always)}": [self.always] * len(self.sentences),
        }
        words = [hidden.word for hidden in self.sentences]
        return [
            (
                who,
                sum(word == guessed[0] for word, guessed in zip(words, lists)),
                sum(word in guessed for word, guessed in zip(words, lists)),
            )
            for who, lists in answers.items()
        ]


def make_table(
    output_dir: str, articles: Sequence[Sequence[str]], num_sentences: int, num_guesses: int,
    seed: int,
) -> Table:  # fmt: skip
    """Returns what a run's model guesses, before and after training.

    articles: their sentences; seed: of the choice of sentences and words.
    """
    before, after, tokenizer = load_both(output_dir)
    sentences = hide_words(articles, tokenizer, num_sentences, seed)
    first, last = (
        [guesses(model, tokenizer, hidden, num_guesses) for hidden in sentences]
        for model in (before, after)
    )
    return Table(sentences, first, last, most_frequent(articles, tokenizer, num_guesses))


def hide_words(
    articles: Sequence[Sequence[str]], tokenizer: BertTokenizerFast, count: int, seed: int
) -> list[Hidden]:
    """Hides one word in each of `count` sentences, spread over as many articles as possible.

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
    words = _words(pieces)
    if not words:
        return None
    position = draw.choice(words)
    start, end = spans[position]
    ids[position] = tokenizer.mask_token_id
    return Hidden(f"{sentence[:start]}[MASK]{sentence[end:]}", ids, position, pieces[position])


def _words(pieces):
    """Returns the places of the words that are one piece."""
    return [
        i
        for i, (piece, following) in enumerate(zip(pieces, [*pieces[1:], ""]))
        if piece.isalpha() and not following.startswith("##")
    ]


@torch.no_grad()
def guesses(
    model: BertForPreTraining, tokenizer: BertTokenizerFast, hidden: Hidden, count: int
) -> list[str]:
    """Returns the pieces that the model finds most likely for the hidden word, best first."""
    encoded = model.bert(torch.tensor([hidden.ids]))
    logits = model.cls.predictions(encoded.last_hidden_state[0, hidden.position])
    return tokenizer.convert_ids_to_tokens(logits.topk(min(count, len(logits))).indices.tolist())


def load_both(output_dir: str) -> tuple[BertForPreTraining, BertForPreTraining, BertTokenizerFast]:
    """Returns the model that a run started from, the one that it ended with, and the tokenizer."""
    folder = os.path.join(output_dir, "model")
    if not os.path.isfile(flags_path(output_dir)) or not os.path.isdir(folder):
        raise FlagError(
            f"--output_dir: {output_dir} has no flags.json or no model/; expected the folder of a "
            "run of train.py that has ended"
        )
    flags = read_record(output_dir)["flags"]
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
    """Returns the most frequent words that are one piece: what a program without any model can
    guess for the words that `hide_word` hides.
    """
    pieces: collections.Counter[str] = collections.Counter()
    for article in articles:
        for line in article:
            found = tokenizer.tokenize(line)
            pieces.update(found[i] for i in _words(found))
    return [piece for piece, _ in pieces.most_common(count)]
