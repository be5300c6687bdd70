"""Step 5: gathers the training articles into parts of about equal size (wiki_00.4 ... ->
part-00000-of-00500 ...).

    python3 cleanup_scripts/do_gather.py --data 'extracted/*/wiki_*' --block_size 26.92 \\
        --out_dir results

Writes <out_dir>/part-XXXXX-of-YYYYY, XXXXX from 00000. YYYYY is --num_outputs and no more than a
name: how many parts there are follows from --block_size. About 200 MB/s.
"""

import glob
import os
import time

import cleanup_io
from journal import Journal


def parse_args():
    parser = cleanup_io.step_parser(__doc__, input_suffix=".4")
    parser.add_argument(
        "--block_size",
        type=float,
        default=26.92,
        metavar="MB",
        help=(
            "extracted text (files without suffix) per part at most, in units of 1024 * 1024 "
            "bytes; a larger file is a part of its own (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--num_outputs",
        type=int,
        default=500,
        metavar="N",
        help="the number in the names of the parts (default: %(default)s)",
    )
    parser.add_argument(
        "--out_dir",
        default="./results",
        metavar="FOLDER",
        help="where the parts go (default: %(default)s)",
    )
    return parser.parse_args()


def blocks_of(files, sizes, block_bytes):
    """Divides the files, in order, into lists; a new list begins where block_bytes < size so far +
    next size.
    """
    blocks = []
    total = 0
    for path, size in zip(files, sizes):
        if not blocks or block_bytes < total + size:
            blocks.append([])
            total = 0
        blocks[-1].append(path)
        total += size
    return blocks


def gathered(text):
    """The text as it goes into a part: no byte-order mark, a final empty line removed."""
    text = text.removeprefix("\ufeff")
    return text[:-1] if text.endswith("\n\n") else text


def gather_block(part, sources):
    """Writes one part; returns (bytes read, bytes written)."""
    read = written = 0
    with cleanup_io.atomic_file(part) as file:
        for source in sources:
            data = gathered(cleanup_io.read_text(source, universal_newlines=True)).encode("utf-8")
            file.write(data)
            read += os.path.getsize(source)
            written += len(data)
    return read, written


def leftover_problems(out_dir, parts):
    """Parts of an earlier run with other settings, which would mix with the parts of this one."""
    leftovers = set(glob.glob(os.path.join(glob.escape(out_dir), "part-*-of-*"))) - set(parts)
    return [
        f"{path}: left by a run with other settings, expected only the {len(parts)} parts of this "
        f"run; remove it: rm {path}"
        for path in sorted(leftovers)
    ]


def check(args):
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
    problems += leftover_problems(out_dir, parts)
    return [
        (part, tuple(path + args.input_suffix for path in block))
        for part, block in zip(parts, blocks)
    ], problems


def main():
    args = parse_args()
    started = time.monotonic()
    tasks, problems = check(args)
    cleanup_io.exit_if(problems)
    out_dir = os.path.expanduser(args.out_dir)
    os.makedirs(out_dir, exist_ok=True)
    journal = Journal("do_gather", out_dir, lambda task: (task[1], [task[0]]), args.restart)
    results, errors = cleanup_io.run_on_files(gather_block, tasks, args.num_workers, journal)
    num_files = sum(len(sources) for _, sources in tasks)
    return cleanup_io.report(
        errors,
        (
            f"do_gather: {num_files} files into {cleanup_io.totals(results, 'parts')}, "
            f"{time.monotonic() - started:.1f} s"
        ),
        journal,
    )


if __name__ == "__main__":
    cleanup_io.run(main)
