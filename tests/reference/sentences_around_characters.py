"""Prints a SHA-256 over the sentences that Punkt finds around characters (every 8th), where their
class decides.

python3.7 tests/reference/sentences_around_characters.py            # with NLTK 3.4.5 and
punkt/data/english.py: the judge .venv/bin/python tests/reference/sentences_around_characters.py
# cleanup_scripts/punkt_3_4_5.py
"""

import hashlib
import os
import sys

import nltk


def english_tokenizer():
    """NLTK's own where it is 3.4.5, else the project's."""
    if nltk.__version__ != "3.4.5":
        root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
        sys.path[:0] = [root, os.path.join(root, "cleanup_scripts")]
        import punkt_3_4_5

        return punkt_3_4_5.english_tokenizer()
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt.data import english

    parameters = PunktParameters()
    parameters.abbrev_types, parameters.collocations = english.ABBREV_TYPES, english.COLLOCATIONS
    parameters.sent_starters = english.SENT_STARTERS
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)


def main():
    digest, tokenizer = hashlib.sha256(), english_tokenizer()
    for code in [*range(0xA3, 0xD800, 8), *range(0xE003, 0x20000, 8), 0x10FC, 0x1CF2, 0x1CF3]:
        char = chr(code)
        text = (
            f"He met {char}. smith and {char}. Smith. {char}A. then {char}. {char}b? Once 5. "
            f"{char} a. {char}{char}."
        )
        for sentence in tokenizer.tokenize(text):
            digest.update((sentence + "\n").encode("utf-8"))
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
