#!/usr/bin/env python3
"""The table of one part in docs/performance.md: CPU and wall seconds, peak memory.

python3 benchmarks/data_generation.py --text='quickstart_output/results/part-*' --megabytes=27

Makes a corpus of that size by repeating the articles of the text in shuffled order, then runs, one
after the other: the reference implementation, create_pretraining_data.py without and with compiled
code and with --output_format=instances, each also for many parts in one process, Hugging Face's
BertTokenizerFast tokenising the corpus alone, and the floors: writing the same bytes, and the
checksums of the same bytes. Checks that the records are equal, those of the instances too. Then
computes from this what MLPerf's 500 parts take.
"""

import argparse
import filecmp
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bert.common.path_flags import expand_patterns

Costs = tuple[float, float, float]  # CPU seconds, wall seconds, peak megabytes

MLPERF_PARTS, CORES = 500, 16

FLAGS = (
    "--do_lower_case=True --max_seq_length=512 --max_predictions_per_seq=76 --masked_lm_prob=0.15 "
    "--random_seed=12345 --dupe_factor=10"
)

TOKENISE = """
from transformers import BertTokenizerFast
tokenizer = BertTokenizerFast(vocab_file='{vocab}')
lines = [line for line in open('{corpus}', encoding='utf-8').read().split('\\n') if line]
for start in range(0, len(lines), 1000):
    tokenizer(lines[start : start + 1000], add_special_tokens=False)
"""
WRITE = """
import os
with open('{records}', 'rb') as source, open('{copy}', 'wb') as copy:
    while block := source.read(1 << 20):
        copy.write(block)
    os.fsync(copy.fileno())
"""
CHECKSUM = """
import google_crc32c
with open('{records}', 'rb') as source:
    while block := source.read(2700):  # bytes of a record
        google_crc32c.value(block)
"""


MANY = """
import json, os, resource, time
from bert.generation.part import Settings, generate
from tokenization import FullTokenizer
settings = Settings(True, False, 512, 76, 0.15, 0.1, 10, 12345)
tokenizer, costs = FullTokenizer('{vocab}'), []
for number in range(6):
    output = f'{folder}/part-{{number}}'
    cpu, started = time.process_time(), time.monotonic()
    generate(['{corpus}'], [output], tokenizer, settings, output_format='{output_format}')
    costs.append((time.process_time() - cpu, time.monotonic() - started))
    os.remove(output)
cpu, wall = sorted(costs[1:])[2]
print(json.dumps([cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000]))
"""


def make_corpus(patterns: str, megabytes: float, path: str) -> None:
    """Writes the articles of the text files, repeated in shuffled order, up to the size."""
    articles: list[str] = []
    for part in expand_patterns(patterns):
        with open(part, encoding="utf-8", newline="") as file:
            articles += [
                article.strip("\n") for article in file.read().split("\n\n") if article.strip()
            ]
    generator, size = random.Random(1), 0
    with open(path, "w", encoding="utf-8", newline="") as file:
        while size < megabytes * 1e6:
            generator.shuffle(articles)
            for article in articles:
                size += len(article.encode()) + 2
                file.write(article + "\n\n")
                if size >= megabytes * 1e6:
                    break


def measure(command: Sequence[str], **environment: str) -> Costs:
    """Runs a command; returns its Costs, with those of its children."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(
            f"error: {' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}"
        )
    return usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss / 1000


def print_table(rows: Sequence[tuple[str, Costs]]) -> None:
    """rows: [(name, costs)]; ratios are to the first."""
    print("| program | CPU seconds | wall seconds | peak MB | speed-up |\n|---|---|---|---|---|")
    for name, (cpu, wall, megabytes) in rows:
        print(f"| {name} | {cpu:.2f} | {wall:.2f} | {megabytes:,.0f} | {rows[0][1][0] / cpu:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", default="quickstart_output/results/part-*", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--megabytes", type=float, default=27.0, help="size of the corpus (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="of all but the reference; the median counts (default: %(default)s)",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus, records, vocab = f"{folder}/corpus", f"{folder}/records", f"{ROOT}/vocab.txt"
        make_corpus(args.text, args.megabytes, corpus)
        names = {
            "vocab": vocab, "corpus": corpus, "records": records, "copy": f"{folder}/copy",
            "folder": folder,
        }  # fmt: skip

        def generate(script, output, *more):
            return [
                sys.executable,
                f"{ROOT}/{script}",
                f"--input_file={corpus}",
                f"--output_file={output}",
                f"--vocab_file={vocab}",
                *FLAGS.split(),
                *more,
            ]

        def inline(code, **more):
            return [sys.executable, "-c", code.format(**names, **more)]

        def one_of_many(output_format):
            """(CPU seconds, wall seconds, peak megabytes) of a part in a process that makes six."""
            command = inline(MANY, output_format=output_format)
            process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
            return json.loads(process.stdout)

        def median(command, **environment):
            return sorted(measure(command, **environment) for _ in range(args.repeats))[
                args.repeats // 2
            ]

        rows = [
            (
                "reference implementation",
                measure(
                    generate("tests/reference/create_pretraining_data.py", f"{folder}/reference")
                ),
            )
        ]
        cold = measure(
            generate("create_pretraining_data.py", records), NUMBA_CACHE_DIR=f"{folder}/cache"
        )
        rows.append(("create_pretraining_data.py, first call (compiles)", cold))
        rows.append(
            ("create_pretraining_data.py", median(generate("create_pretraining_data.py", records)))
        )
        if not filecmp.cmp(records, f"{folder}/reference", shallow=False):
            sys.exit("error: the records differ")
        os.remove(f"{folder}/reference")
        many = {name: one_of_many(name) for name in ("tfrecord", "instances")}
        rows.append(("the same, one part of many in a process", many["tfrecord"]))
        instances = f"{folder}/instances/records"
        command = generate("create_pretraining_data.py", instances, "--output_format=instances")
        measure(command)  # compiles
        rows.append(("create_pretraining_data.py --output_format=instances", median(command)))
        rows.append(("the same, one part of many in a process", many["instances"]))
        converter = f"{ROOT}/instances_to_tfrecord.py"
        flags = [f"--instances={instances}", f"--output_dir={folder}/converted"]
        rows.append(
            ("instances_to_tfrecord.py, of these", measure([sys.executable, converter, *flags]))
        )
        if not filecmp.cmp(records, f"{folder}/converted/records", shallow=False):
            sys.exit("error: the records of the instances differ")
        rows.append(
            (
                "BertTokenizerFast, tokenising alone",
                median(inline(TOKENISE), USE_TF="0", TOKENIZERS_PARALLELISM="false"),
            )
        )
        rows.append(("floor: copying the records", median(inline(WRITE))))
        rows.append(("floor: checksums of the records", median(inline(CHECKSUM))))
        print(
            f"{os.path.getsize(corpus):,} bytes of text, {os.path.getsize(records):,} bytes of "
            f"records, {os.path.getsize(instances):,} bytes of instances"
        )
    print()
    print_table(rows)
    print(f"\ncomputed: {MLPERF_PARTS} such parts, as parts of many in {CORES} processes")
    for name, (cpu, _, megabytes) in many.items():
        print(
            f"{name}: {cpu * MLPERF_PARTS / 60:.0f} CPU minutes, {cpu * MLPERF_PARTS / CORES:.0f} "
            f"seconds on {CORES} idle cores, {megabytes * CORES / 1000:.1f} GB of memory"
        )


if __name__ == "__main__":
    main()
