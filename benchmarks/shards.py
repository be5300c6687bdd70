#!/usr/bin/env python3
"""The table of all parts in docs/performance.md: the same parts by one worker and by more.

python3 benchmarks/shards.py --text='quickstart_output/results/part-*'

Needs 0.6 GB of disk a part, in the folder of temporary files (TMPDIR), and takes three minutes for
eight parts. Writes a corpus of --megabytes from articles of the text, repeats it as --parts parts,
and makes them with each number of --workers. Prints wall time (also without the start of Ray), CPU
and wall seconds of a part, and the peak memory of the largest worker.
"""

import argparse
import filecmp
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from data_generation import FLAGS, make_corpus


def run(num_workers: int, texts: str, output: str) -> float:
    """Runs the command; returns wall seconds."""
    command = [sys.executable, f"{ROOT}/create_pretraining_shards.py", f"--input_dir={texts}",
               f"--output_dir={output}", f"--vocab_file={ROOT}/vocab.txt",
               f"--num_workers={num_workers}", *FLAGS.split()]  # fmt: skip
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def costs_of(output: str) -> tuple[list[dict[str, float]], float]:
    """Returns the manifests' costs, and seconds from the first part's start to the last's end."""
    paths = glob.glob(f"{output}/.manifest/*.json")
    costs = []
    for path in paths:
        with open(path) as file:
            costs.append(json.load(file)["cost"])
    ends = [os.path.getmtime(path) for path in paths]
    return costs, max(ends) - min(end - cost["wall_seconds"] for end, cost in zip(ends, costs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", default="quickstart_output/results/part-*", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--megabytes", type=float, default=27.0, help="size of a part (default: %(default)s)"
    )
    parser.add_argument("--parts", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="in turns; the fastest counts (default: %(default)s)"
    )
    args = parser.parse_args()
    runs: dict[int, list[tuple]] = {num_workers: [] for num_workers in args.workers}
    with tempfile.TemporaryDirectory() as folder:
        texts = f"{folder}/texts"
        os.mkdir(texts)
        make_corpus(args.text, args.megabytes, f"{texts}/part-00000")
        for number in range(1, args.parts):
            shutil.copyfile(f"{texts}/part-00000", f"{texts}/part-{number:05d}")
        run(1, f"{texts}/part-00000", f"{folder}/warm")  # compiles, if need be
        for num_workers in args.workers * args.repeats:
            output = f"{folder}/records"
            wall = run(num_workers, texts, output)
            costs, parts_wall = costs_of(output)
            if not all(
                filecmp.cmp(path, f"{folder}/warm/part-00000", shallow=False)
                for path in glob.glob(f"{output}/part-*")
            ):
                sys.exit("error: the records differ")
            size = sum(os.path.getsize(path) for path in glob.glob(f"{output}/part-*"))
            shutil.rmtree(output)
            of_part = [
                sum(cost[name] for cost in costs) / len(costs)
                for name in ("cpu_seconds", "wall_seconds")
            ]
            runs[num_workers].append(
                (parts_wall, wall, *of_part, max(cost["peak_megabytes"] for cost in costs))
            )
    print(f"{args.parts} parts of {args.megabytes:.0f} MB, {size:,} bytes of records, equal")
    print(
        "\n| workers | wall seconds | parts alone | times as fast | CPU a part | wall a part | "
        "peak MB of a worker |"
    )
    print("|---|---|---|---|---|---|---|")
    of_first = min(runs[args.workers[0]])[0]
    for num_workers, of_workers in runs.items():
        parts_wall, wall, cpu_of_part, wall_of_part, megabytes = min(of_workers)
        print(
            f"| {num_workers} | {wall:.1f} | {parts_wall:.1f} | {of_first / parts_wall:.2f} | "
            f"{cpu_of_part:.2f} | {wall_of_part:.2f} | {megabytes:,} |"
        )


if __name__ == "__main__":
    main()
