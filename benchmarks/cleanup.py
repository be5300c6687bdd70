#!/usr/bin/env python3
"""The table of the cleanup chain in docs/performance.md: MB/s of each step, and an estimate for the
full English dump.

python3 benchmarks/cleanup.py \\
    --dump=quickstart_output/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2

Makes a multistream dump of the excerpt's pages, once and --times times over, and runs every step of
cleanup_scripts/ on both with --num_workers processes. About ten minutes of CPU time.

The estimate for the full dump takes the CPU seconds that the larger dump took more than the smaller
one, per MB of XML (extraction) or of extracted text (the other steps). They are divided by the
cores. The extraction has two more parts, which more cores do not shorten: each WikiExtractor reads
the templates of the whole dump before it begins, measured here on --template_mb of them; and when
the last slices are at work, other cores have nothing to do, for as long as a slice takes. Disks are
assumed to be fast enough.

The extraction is compared with one WikiExtractor that reads the whole dump: with one process on one
core, and with --num_workers processes. Sentence segmentation is compared with NLTK's own tokenizer,
one process each, on the same text. On a busy machine only the CPU seconds mean something.
"""

import bz2
import contextlib
import glob
import io
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from bert.common import cli

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPTS = os.path.join(ROOT, "cleanup_scripts")
FULL_XML_MB = 75_163  # the dump of 2020-01-01, MLPerf's README
# extracted from it: 13,418 files, AA/wiki_00 to FE/wiki_17, of 1.048 MB each (the same README)
FULL_TEXT_MB = 14_060
# All templates of the dump as WikiExtractor reads them: an assumption, rounded up. WikiExtractor's
# source (template_blob.py) reports 897,000 templates and 1.85 GB for a later English dump.
FULL_TEMPLATES_MB = 2_000
FULL_SLICE_MB = 64 * 1.048576 * FULL_XML_MB / 17_751  # of XML; 17,751 MB is the dump's size
PROCESSES_PER_EXTRACTOR = 4  # as in extract_dump.py
CORES = (2, 64)
PAGES_PER_STREAM = 100  # Wikimedia's


class Cost(NamedTuple):
    """Of a command with all its processes: seconds, CPU seconds, peak memory in MB."""

    wall: float
    cpu: float
    memory: float


Figures = dict[str, tuple[Cost, float]]  # {step: (cost, MB of text read)}
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
    head, tail = xml[: xml.index(b"  <page>")], b"</mediawiki>\n"
    pages = re.findall(rb"  <page>.*?</page>\n", xml, re.DOTALL) * times
    groups = [
        b"".join(pages[start : start + PAGES_PER_STREAM])
        for start in range(0, len(pages), PAGES_PER_STREAM)
    ]
    with open(path, "wb") as file:
        for text in (head, *groups, tail):
            file.write(bz2.compress(text))
    return sum(map(len, (head, *groups, tail))) / 1e6


def cost_of(command: Sequence[str], folder: str, cores: set[int] | None = None) -> Cost:
    """Runs a command in a folder, on some cores only if they are given."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, peak, ended = time.monotonic(), [0.0], threading.Event()
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )

    def watch_memory():
        while not ended.wait(0.5):
            peak[0] = max(peak[0], sum(map(memory_of, family_of(process.pid))))

    watcher = threading.Thread(target=watch_memory)
    watcher.start()
    _, errors = process.communicate()
    wall = time.monotonic() - started
    ended.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)}\n{errors}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, peak[0])


def family_of(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(path) as file:
            parent = int(file.read().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(path.split("/")[2]))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def memory_of(pid: int) -> float:
    """MB; of memory that processes share, its part."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        return int(re.search(r"^Pss: +(\d+)", file.read(), re.MULTILINE)[1]) / 1024  # type: ignore[index]  # always there
    return 0.0


def megabytes(folder: str, suffix: str) -> float:
    names = glob.glob(f"{folder}/extracted/*/wiki_[0-9][0-9][0-9][0-9][0-9]{suffix}")
    return sum(map(os.path.getsize, names)) / 1e6


def run_chain(dump: str, folder: str, num_workers: int, slice_size: str) -> Figures:
    extract = f"{SCRIPTS}/extract_dump.py --num_workers={num_workers} --slice_size={slice_size}"
    figures: Figures = {
        "extract_dump": (cost_of([sys.executable, *extract.split(), "--dump", dump], folder), 0.0)
    }
    for step, suffix in INPUT_SUFFIX.items():
        flags = ["--data=extracted/*/wiki_*", f"--num_workers={num_workers}", *FLAGS.get(step, [])]
        cost = cost_of([sys.executable, f"{SCRIPTS}/{step}.py", *flags], folder)
        figures[step] = cost, megabytes(folder, suffix)
    return figures


def whole_dump_cost(dump: str, folder: str, processes: int, cores: set[int] | None = None) -> Cost:
    """Of one WikiExtractor over the whole dump."""
    flags = f"--quiet --processes {processes} --output one_{processes}".split()
    command = [sys.executable, "-m", "wikiextractor.WikiExtractor", *flags, dump]
    return cost_of(command, folder, cores)


def template_cost(dump: str, folder: str, megabytes: float) -> Cost:
    """Of a WikiExtractor that reads so many MB of templates more than none, and no page."""
    text = bz2.open(dump).read()
    texts = re.findall(rb"<text.*?</text>", text, re.DOTALL)
    costs = []
    with open(f"{folder}/header.xml", "wb") as file:
        file.write(text[: text.index(b"  <page>")])
    for size in (0.0, megabytes * 1e6):
        with open(f"{folder}/templates.xml", "wb") as file:
            number = 0
            while file.tell() < size:
                title = b"<title>Template:%d</title>" % number
                file.write(b"<page>\n%s\n%s\n</page>\n" % (title, texts[number % len(texts)]))
                number += 1
        flags = "--quiet --processes 1 --templates templates.xml --output - header.xml"
        command = [sys.executable, "-m", "wikiextractor.WikiExtractor", *flags.split()]
        costs.append(cost_of(command, folder))
    return Cost(*(more - less for less, more in zip(*costs)))


def segmentation_speeds(folder: str) -> list[float]:
    """[MB/s of do_sentence_segmentation.py, MB/s of NLTK's own tokenizer] in one process."""
    sys.path.insert(0, SCRIPTS)
    import do_sentence_segmentation
    import punkt_3_4_5
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    text = ""
    for path in sorted(glob.glob(f"{folder}/extracted/*/wiki_[0-9][0-9][0-9][0-9][0-9].2"))[:8]:
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


def extraction_minutes(
    core_seconds_per_mb: float, template_seconds_per_mb: float, cores: int
) -> tuple[float, float, float]:
    """(CPU, templates, last slices) of the full dump."""
    processes = min(cores, PROCESSES_PER_EXTRACTOR)
    return (
        core_seconds_per_mb * FULL_XML_MB / cores / 60,
        template_seconds_per_mb * FULL_TEMPLATES_MB / 60,
        core_seconds_per_mb * FULL_SLICE_MB / processes / 60,
    )


def print_table(
    once: Figures, often: Figures, xml_mb: Sequence[float], times: int, template_seconds: float
) -> None:
    """template_seconds: per MB of templates."""
    print(
        f"\n| step | MB/s, the excerpt | MB/s, {times} times | full dump, {CORES[0]} cores | "
        f"full dump, {CORES[1]} cores | bound by |"
    )
    print("|---|---|---|---|---|---|")
    totals = dict.fromkeys(CORES, 0.0)
    more_text = often["cleanup_file"][1] - once["cleanup_file"][1]
    for step, (cost_once, mb_once) in once.items():
        cost, mb = often[step]
        cpu = cost.cpu - cost_once.cpu
        bound, minutes = "CPU", {}
        for cores in CORES:
            if step == "extract_dump":
                parts = extraction_minutes(cpu / (xml_mb[1] - xml_mb[0]), template_seconds, cores)
                minutes[cores] = sum(parts)
                bound = "CPU; {:.1f} min, reading templates {:.1f}, last slices {:.1f}".format(
                    *parts
                )
            else:
                minutes[cores] = cpu * FULL_TEXT_MB / more_text / cores / 60
            totals[cores] += minutes[cores]
        estimates = " | ".join(f"{minutes[cores]:.1f} min" for cores in CORES)
        speeds = [(mb_once or xml_mb[0]) / cost_once.wall, (mb or xml_mb[1]) / cost.wall]
        print(f"| {step} | {speeds[0]:.1f} | {speeds[1]:.1f} | {estimates} | {bound} |")
    print(f"| all | | | {totals[CORES[0]]:.0f} min | {totals[CORES[1]]:.0f} min | |")


def print_extraction(
    sliced: Cost, whole: dict[str, Cost], xml_mb: float, num_workers: int, slice_size: str
) -> None:
    rows = whole | {f"extract_dump.py, {num_workers} workers, slices of {slice_size}B": sliced}
    first = next(iter(whole.values()))
    print(
        f"\n| extraction of {xml_mb:.0f} MB of XML | wall s | CPU s | MB/s | speed-up | peak MB |"
    )
    print("|---|---|---|---|---|---|")
    for name, cost in rows.items():
        print(
            f"| {name} | {cost.wall:.1f} | {cost.cpu:.1f} | {xml_mb / cost.wall:.1f} | "
            f"{first.wall / cost.wall:.2f} | {cost.memory:.0f} |"
        )
    print(
        f"by CPU seconds, {num_workers} busy cores would be "
        f"{first.cpu / (sliced.cpu / num_workers):.2f} times as fast as one process on one core"
    )


def main() -> None:
    parser = cli.parser_from_docstring(__doc__)
    add = parser.add_argument
    # fmt: off
    add("--dump", required=True, help="a pages-articles dump or an excerpt of one, .bz2")
    add("--times", type=int, default=20,
        help="how often its pages are repeated (default: %(default)s)")
    add("--num_workers", type=int, default=2,
        help="processes of each step (default: %(default)s)")
    add("--slice_size", default="4M",
        help="of the dump with the repeated pages; for the full dump it is 64M "
             "(default: %(default)s)")
    add("--template_mb", type=float, default=100,
        help="MB of templates whose reading is measured (default: %(default)s)")
    # fmt: on
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(2)]
        figures: list[Figures] = []
        xml_mb: list[float] = []
        for folder, times in zip(folders, (1, args.times)):
            dump = f"{folder}/dump.xml.bz2"
            xml_mb.append(repeat_pages(args.dump, times, dump))
            figures.append(run_chain(dump, folder, args.num_workers, args.slice_size))
        one_core = {min(os.sched_getaffinity(0))}
        whole = {
            "one WikiExtractor, 1 process, on one core": whole_dump_cost(dump, folder, 1, one_core),
            "the same, on all cores": whole_dump_cost(dump, folder, 1),
            f"one WikiExtractor, {args.num_workers} processes": whole_dump_cost(
                dump, folder, args.num_workers
            ),
        }
        templates = template_cost(args.dump, folder, args.template_mb)
        ours, nltks = segmentation_speeds(folder)
    print(f"{xml_mb[0]:.1f} MB of XML, and {xml_mb[1]:.1f} MB; {args.num_workers} processes")
    seconds_per_mb = templates.cpu / args.template_mb
    print_table(figures[0], figures[1], xml_mb, args.times, seconds_per_mb)
    sliced = figures[1]["extract_dump"][0]
    print_extraction(sliced, whole, xml_mb[1], args.num_workers, args.slice_size)
    print(
        f"\ntemplates: a WikiExtractor reads {1 / seconds_per_mb:.1f} MB/s of them, and needs "
        f"{templates.memory / args.template_mb:.1f} MB of memory per MB at its peak; the full "
        f"dump's are assumed to be {FULL_TEMPLATES_MB:,} MB"
    )
    print(
        f"segmentation, one process: {ours:.1f} MB/s; "
        f"NLTK's own tokenizer: {nltks:.1f} MB/s ({ours / nltks:.1f} times)"
    )


if __name__ == "__main__":
    cli.run(main)
