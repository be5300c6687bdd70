"""Step 5: gathers the training articles into parts of about equal size (wiki_00.4 ... ->
part-00000-of-00500 ...).

    python3 cleanup_scripts/do_gather.py --data 'extracted/*/wiki_*' --block_size 26.92 \\
        --out_dir results

Writes <out_dir>/part-XXXXX-of-YYYYY, XXXXX from 00000. YYYYY is --num_outputs and no more than a
name: how many parts there are follows from --block_size. About 200 MB/s.
"""

import argparse
import glob
import os
import shlex
from collections.abc import Iterable, Sequence

import cleanup_io
from journal import Journal

from bert.common.files import FlagError, atomic_writer, raise_if_any
from bert.common.path_flags import folder_problems


def parse_args() -> argparse.Namespace:
    parser = cleanup_io.step_parser(__doc__, input_suffix=".4")
    add = parser.add_argument
    # fmt: off
    add("--block_size", type=float, default=26.92, metavar="MB",
        help="extracted text (files without suffix) per part at most, in units of 1024 * 1024 "
        "bytes; a larger file is a part of its own (default: %(default)s)")
    add("--num_outputs", type=int, default=500, metavar="N",
        help="the number in the names of the parts (default: %(default)s)")
    add("--out_dir", default="./results", metavar="FOLDER",
        help="where the parts go (default: %(default)s)")
    # fmt: on
    return parser.parse_args()


def blocks_of(files: Iterable[str], sizes: Iterable[int], block_bytes: float) -> list[list[str]]:
    """Divides the files, in order, into lists of at most `block_bytes` or of one larger file."""
    blocks: list[list[str]] = []
    total = 0
    for path, size in zip(files, sizes):
        if not blocks or block_bytes < total + size:
            blocks.append([])
            total = 0
        blocks[-1].append(path)
        total += size
    return blocks


def gathered(text: str) -> str:
    """The text as it goes into a part: no byte-order mark, a final empty line removed."""
    text = text.removeprefix("\ufeff")
    return text[:-1] if text.endswith("\n\n") else text


def gather_block(part: str, sources: Sequence[str]) -> tuple[int, int]:
    """Writes one part; returns (bytes read, bytes written)."""
    read = written = 0
    with atomic_writer(part) as file:
        for source in sources:
            data = gathered(cleanup_io.read_text(source, universal_newlines=True)).encode("utf-8")
            file.write(data)
            read += os.path.getsize(source)
            written += len(data)
    return read, written


def leftover_problems(out_dir: str, parts: Sequence[str]) -> list[str]:
    """Parts of an earlier run with other settings, which would mix with the parts of this one."""
    found = glob.glob(os.path.join(glob.escape(out_dir), "part-*-of-*"))
    leftovers = sorted(set(found) - set(parts))
    if not leftovers:
        return []
    return [
        f"{out_dir}: holds {len(leftovers)} parts of a run with other settings, expected only the "
        f"{len(parts)} parts of this run; remove them: {shlex.join(['rm', *leftovers[:5]])}"
        + (f" and {len(leftovers) - 5} more such as {leftovers[-1]}" if leftovers[5:] else "")
    ]


def check(args: argparse.Namespace) -> tuple[list[tuple], list[str]]:
    """Returns (tasks of gather_block, problems)."""
    files, problems = cleanup_io.check_inputs(args)
    if not args.block_size > 0:
        problems.append(f"--block_size {args.block_size}: expected a number of MB above 0")
    if args.num_outputs < 1:
        problems.append(f"--num_outputs {args.num_outputs}: expected at least 1")
    out_dir = os.path.expanduser(args.out_dir)
    blocks = blocks_of(
        files, map(os.path.getsize, files), args.block_size * cleanup_io.BYTES_PER_MB
    )
    parts = [
        os.path.join(out_dir, f"part-{number:05d}-of-{args.num_outputs:05d}")
        for number in range(len(blocks))
    ]
    problems += [f"--out_dir: {problem}" for problem in folder_problems(out_dir)]
    problems += leftover_problems(out_dir, parts)
    return [
        (part, tuple(path + args.input_suffix for path in block))
        for part, block in zip(parts, blocks)
    ], problems


def main() -> None:
    args = parse_args()
    tasks, problems = check(args)
    raise_if_any(problems, FlagError)
    out_dir = os.path.expanduser(args.out_dir)
    os.makedirs(out_dir, exist_ok=True)
    journal = Journal("do_gather", out_dir, lambda task: (task[1], [task[0]]), args.restart)
    results, errors = cleanup_io.run_on_files(gather_block, tasks, args.num_workers, journal)
    num_files = sum(len(sources) for _, sources in tasks)
    parts = cleanup_io.totals(results, "parts")
    cleanup_io.finish(f"do_gather: {num_files} files into {parts}", errors, journal)


if __name__ == "__main__":
    cleanup_io.run(main)
