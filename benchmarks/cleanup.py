#!/usr/bin/env python3
"""The table of the cleanup chain in docs/performance.md: MB/s of each step, and an estimate for the
full English dump.

python3 benchmarks/cleanup.py \\
    --dump=quickstart_output/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2

Runs every step of cleanup_scripts/ on the dump as it is, and on the same pages 20 times over, with
--num_workers processes (about a minute). The estimate takes the seconds that 20 times the pages
took more than once the pages, per MB of XML (extraction) or of extracted text (the other steps), to
the full dump's; with more cores the steps divide by them, but for what one process must do
alone: reading the dump, which is measured by itself. Disks are assumed to be fast enough. Sentence
segmentation is compared with NLTK's own tokenizer, one process each, on the same text.
"""

import bz2
import contextlib
import glob
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from bert.common import cli

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPTS = os.path.join(ROOT, "cleanup_scripts")
FULL_XML_MB = 75_163  # the dump of 2020-01-01, MLPerf's README
# extracted from it: 13,418 files, AA/wiki_00 to FE/wiki_17, of 1.048 MB each (the same README)
FULL_TEXT_MB = 14_060
CORES = (2, 64)
Figures = dict[str, tuple[float, float]]  # {step: (seconds, MB of text read)}
INPUT_SUFFIX = {  # of each step
    "cleanup_file": "",
    "clean_markup": ".1",
    "do_sentence_segmentation": ".2",
    "separate_test_set": ".3",
    "do_gather": ".4",
}
FLAGS = {"separate_test_set": ["--num_test_articles=12"]}


def repeat_pages(dump: str, times: int, path: str) -> float:
    """Writes a multistream dump with the pages of `dump` so many times; returns MB of XML."""
    xml = bz2.open(dump).read()
    first, last = xml.index(b"<page>"), xml.rindex(b"</page>") + len(b"</page>\n")
    head, pages = xml[:first], xml[first:last]
    stream = bz2.compress(pages)
    with open(path, "wb") as file:
        file.write(bz2.compress(head) + stream * times + bz2.compress(b"</mediawiki>\n"))
    return (len(head) + times * len(pages)) / 1e6


def timed(command: Sequence[str], folder: str) -> float:
    started = time.monotonic()
    process = subprocess.run(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if process.returncode:
        sys.exit(f"error: {' '.join(command)}\n{process.stderr}")
    return time.monotonic() - started


def megabytes(folder: str, suffix: str) -> float:
    names = glob.glob(f"{folder}/extracted/*/wiki_[0-9][0-9]{suffix}")
    return sum(map(os.path.getsize, names)) / 1e6


def run_chain(dump: str, folder: str, num_workers: int) -> Figures:
    extract = f"-m wikiextractor.WikiExtractor --quiet --processes {num_workers} --bytes 1M"
    command = [sys.executable, *extract.split(), "--output", f"{folder}/extracted", dump]
    figures: Figures = {"WikiExtractor": (timed(command, folder), 0.0)}
    for step, suffix in INPUT_SUFFIX.items():
        flags = ["--data=extracted/*/wiki_*", f"--num_workers={num_workers}", *FLAGS.get(step, [])]
        seconds = timed([sys.executable, f"{SCRIPTS}/{step}.py", *flags], folder)
        figures[step] = seconds, megabytes(folder, suffix)
    return figures


def reading_seconds(dump: str) -> float:
    """Seconds to unpack a dump and look at each line, as WikiExtractor's first process must."""
    started = time.monotonic()
    with bz2.open(dump, "rt", encoding="utf-8") as lines:
        for line in lines:
            "<page>" in line  # noqa: B015
    return time.monotonic() - started


def segmentation_speeds(folder: str) -> list[float]:
    """[MB/s of do_sentence_segmentation.py, MB/s of NLTK's own tokenizer] in one process."""
    sys.path.insert(0, SCRIPTS)
    import do_sentence_segmentation
    import punkt_3_4_5
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    text = ""
    for path in sorted(glob.glob(f"{folder}/extracted/*/wiki_[0-9][0-9].2"))[:8]:
        with open(path, encoding="utf-8", newline="") as file:
            text += file.read()
    nltk_tokenizer = PunktSentenceTokenizer(punkt_3_4_5.english_tokenizer()._params)

    def with_nltk():
        for line in io.StringIO(text, newline="\n"):
            nltk_tokenizer.tokenize(line)

    seconds = []
    for segment in (lambda: do_sentence_segmentation.segment(text), with_nltk):
        times = []
        for _ in range(3):
            started = time.monotonic()
            segment()
            times.append(time.monotonic() - started)
        seconds.append(min(times))
    return [len(text.encode()) / 1e6 / best for best in seconds]


def print_table(
    once: Figures,
    often: Figures,
    xml_mb: Sequence[float],
    times: int,
    num_workers: int,
    reading: float,
) -> None:
    print(
        f"\n| step | MB/s, the excerpt | MB/s, {times} times | full dump, {CORES[0]} cores | "
        f"full dump, {CORES[1]} cores | bound by |"
    )
    print("|---|---|---|---|---|---|")
    totals = dict.fromkeys(CORES, 0.0)
    alone = reading / xml_mb[1] * FULL_XML_MB / 60
    more_text = often["cleanup_file"][1] - once["cleanup_file"][1]
    for step, (seconds_once, mb_once) in once.items():
        seconds, mb = often[step]
        is_extraction = step == "WikiExtractor"
        larger = (
            FULL_XML_MB / (xml_mb[1] - xml_mb[0]) if is_extraction else FULL_TEXT_MB / more_text
        )
        core_minutes = (seconds - seconds_once) * num_workers * larger / 60
        minutes = {
            cores: max(core_minutes / cores, alone if is_extraction else 0.0) for cores in CORES
        }
        is_bound_by_reader = is_extraction and minutes[CORES[1]] == alone
        bound = (
            "CPU; with many cores by the one process that reads the dump"
            if is_bound_by_reader
            else "CPU"
        )
        for cores in CORES:
            totals[cores] += minutes[cores]
        estimates = " | ".join(f"{minutes[cores]:.1f} min" for cores in CORES)
        speeds = [(mb_once or xml_mb[0]) / seconds_once, (mb or xml_mb[1]) / seconds]
        print(f"| {step} | {speeds[0]:.1f} | {speeds[1]:.1f} | {estimates} | {bound} |")
    print(f"| all | | | {totals[CORES[0]]:.0f} min | {totals[CORES[1]]:.0f} min | |")


def main() -> None:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    # fmt: off
    add("--dump", required=True, help="a pages-articles dump or an excerpt of one, .bz2")
    add("--times", type=int, default=20,
        help="how often its pages are repeated (default: %(default)s)")
    add("--num_workers", type=int, default=2,
        help="processes of each step (default: %(default)s)")
    # fmt: on
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(2)]
        figures: list[Figures] = []
        xml_mb: list[float] = []
        dumps: list[str] = []
        for folder, times in zip(folders, (1, args.times)):
            dumps.append(f"{folder}/dump.xml.bz2")
            xml_mb.append(repeat_pages(args.dump, times, dumps[-1]))
            figures.append(run_chain(dumps[-1], folder, args.num_workers))
        reading = reading_seconds(dumps[1])
        ours, nltks = segmentation_speeds(folders[1])
    print(f"{xml_mb[0]:.1f} MB of XML, and {xml_mb[1]:.1f} MB; {args.num_workers} processes")
    print_table(figures[0], figures[1], xml_mb, args.times, args.num_workers, reading)
    print(f"\nreading the dump in one process: {xml_mb[1] / reading:.1f} MB/s of XML")
    print(
        f"segmentation, one process: {ours:.1f} MB/s; "
        f"NLTK's own tokenizer: {nltks:.1f} MB/s ({ours / nltks:.1f} times)"
    )


if __name__ == "__main__":
    cli.run(main)
