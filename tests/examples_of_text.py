"""Files of examples made of one text, in both formats, for tests that compare them."""

import functools

from conftest import ROOT, UNICODE_TEXT

from bert.generation.part import Settings, generate
from tokenization import FullTokenizer

SETTINGS = Settings(
    do_lower_case=True, preserve_unused_tokens=False, max_seq_length=64, max_predictions_per_seq=10,
    masked_lm_prob=0.15, short_seq_prob=0.1, dupe_factor=2, random_seed=12345,
)  # fmt: skip


@functools.cache
def tokenizer():
    return FullTokenizer(ROOT / "vocab.txt")


def make_examples(folder, names, text=UNICODE_TEXT, **changed):
    """Writes folder/tfrecord/NAME and folder/instances/NAME for each name, of the same examples;
    changed: fields of SETTINGS. Returns ([TFRecord paths], [instance paths]).
    """
    settings = SETTINGS._replace(**changed)
    paths = {}
    for output_format in ("tfrecord", "instances"):
        paths[output_format] = [str(folder / output_format / name) for name in names]
        generate(
            [str(text)], paths[output_format], tokenizer(), settings, output_format=output_format
        )
    return paths["tfrecord"], paths["instances"]
