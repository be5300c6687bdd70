#!/usr/bin/env python3
"""The table of loaders in docs/performance.md: samples/s, CPU seconds per million samples.

python3 benchmarks/loader.py              # 64,000 synthetic records of MLPerf's lengths, 3 minutes
python3 benchmarks/loader.py --full_set   # start and memory, 157 million examples, 8 ranks
python3 benchmarks/loader.py --disk=FILE  # reads of several sizes at random places of a large file

Each loader runs in a process of its own over files that lie in memory, for whole epochs of at least
--seconds, after a first epoch that does not count; the median of --repeats processes in turn. CPU
seconds are those of the whole process in these epochs. Writes nothing but temporary files.
"""

import argparse
import concurrent.futures
import glob
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bert_dali_dataloader import DaliDataloader

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
from bert.examples.encoding import encode_records
from bert.examples.example import FEATURES, decode_example
from bert.examples.instance_file import Header, instance_file_blocks
from bert.examples.instances import CHANGE, INSTANCE, Instances
from bert.examples.tfrecord import TFRecordFile, write_index

SEQUENCE, PREDICTIONS, VOCAB = 512, 76, 30_522
MLPERF_RECORDS, MLPERF_FILES = 157_000_000, 500
GPUS, SAMPLES_PER_GPU = 8, 1000


def random_instances(count: int, seed: int) -> Instances:
    """Instances as long as MLPerf's: a mean of 254 tokens, 15 % masked."""
    generator = np.random.default_rng(seed)
    lengths = np.where(generator.random(count) < 0.2, SEQUENCE, generator.integers(10, 400, count))
    rows = np.zeros(count, INSTANCE)
    rows["a_length"] = lengths // 2 - 2
    rows["b_length"] = lengths - 3 - rows["a_length"]
    tokens = generator.integers(1000, VOCAB, int(lengths.sum() // 10), dtype=np.uint16)
    for name in ("a_start", "b_start"):  # a text of which there are ten masked copies
        rows[name] = generator.integers(0, len(tokens) - SEQUENCE, count)
    rows["num_changes"] = np.clip(np.round(0.15 * lengths), 1, PREDICTIONS)
    rows["is_random_next"] = generator.integers(0, 2, count)
    ends = np.cumsum(rows["num_changes"], dtype=np.int64)
    rows["first_change"] = ends - rows["num_changes"]
    changes = np.empty(ends[-1], CHANGE)
    for row, length in zip(rows, lengths):
        own = changes[row["first_change"] :][: row["num_changes"]]
        own["position"] = np.sort(generator.permutation(length)[: len(own)])
    changes["new_id"] = generator.integers(1000, VOCAB, len(changes))
    return Instances(rows, tokens, changes)


def write_examples(path: str, count: int, seed: int) -> None:
    """Writes a TFRecord file, its index, and the instance file of the same examples: <path>,
    <path>.idx, <path>.instances.
    """
    instances = random_instances(count, seed)
    header = Header(SEQUENCE, PREDICTIONS, VOCAB, 101, 102, "00000000", 0, "{}")
    with open(path, "wb") as file:
        file.writelines(
            data for data, _ in encode_records(instances, (101, 102), SEQUENCE, PREDICTIONS)
        )
    write_index(path, f"{path}.idx")
    with open(f"{path}.instances", "wb") as file:
        file.writelines(instance_file_blocks(instances, np.arange(count), header))


# --------------------------------------------------------------------------------------------------
# The loaders. Each is a function (paths, batch size, threads) -> Epoch.

Epoch = Callable[[], Iterable[Any]]  # called once an epoch: its batches


def make_loader(
    paths: Sequence[str], batch_size: int, threads: int, rank: int = 0, ranks: int = 1
) -> "DaliDataloader":
    from bert_dali_dataloader import DaliDataloader

    indexes = [] if paths[0].endswith(".instances") else [f"{path}.idx" for path in paths]
    return DaliDataloader(
        paths, indexes, batch_size=batch_size, num_threads=threads, shard_id=rank,
        num_shards=ranks, cuda=False,
    )  # fmt: skip


def ours(paths: Sequence[str], batch_size: int, threads: int) -> Epoch:
    return make_loader(paths, batch_size, threads).__iter__


def without_dali(paths: Sequence[str], batch_size: int, threads: int) -> Epoch:
    """What `DaliDataloader` gives to DALI."""
    from bert.loader.batches import iterate_batches
    from bert.loader.shares import in_turn

    loader = make_loader(paths, batch_size, threads)
    source, end = loader._source, len(loader) * batch_size

    def epoch():
        parts = in_turn(loader._order(0), 0, end, 0, 1)
        for batch in iterate_batches(source, parts, batch_size, threads, 2 * threads):
            yield source.layout.split(*batch)

    return epoch


def ours_instances(paths: Sequence[str], batch_size: int, threads: int) -> Epoch:
    return ours([f"{path}.instances" for path in paths], batch_size, threads)


def without_dali_instances(paths: Sequence[str], batch_size: int, threads: int) -> Epoch:
    return without_dali([f"{path}.instances" for path in paths], batch_size, threads)


def raw_dali(paths: Sequence[str], batch_size: int, threads: int) -> Epoch:
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali import tfrecord as dali_tfrecord
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    lengths = {"sequence": SEQUENCE, "predictions": PREDICTIONS, "one": 1}
    types = {"int64": (dali_tfrecord.int64, 0), "float32": (dali_tfrecord.float32, 0.0)}

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=None)
    def read():
        columns: Any = fn.readers.tfrecord(
            name="reader", path=paths, index_path=[f"{path}.idx" for path in paths],
            random_shuffle=True, initial_fill=1 << 16, pad_last_batch=True, prefetch_queue_depth=2,
            features={
                feature.name: dali_tfrecord.FixedLenFeature([lengths[feature.length]],
                                                            *types[feature.dtype])
                for feature in FEATURES
            },
        )  # fmt: skip
        return tuple(columns[feature.name] for feature in FEATURES)

    iterator = DALIGenericIterator(
        read(),
        [feature.name for feature in FEATURES],
        reader_name="reader",
        last_batch_policy=LastBatchPolicy.PARTIAL,
    )

    def epoch():
        yield from iterator
        iterator.reset()

    return epoch


def tf_data(paths: Sequence[str], batch_size: int, threads: int, is_batched: bool = False) -> Epoch:
    """As MLPerf's run_pretraining.py: interleaved files, 1,000 records shuffled, parsed one by one.

    is_batched: parsed a batch at a time, which MLPerf does not do.
    """
    import tensorflow as tf

    lengths = {"sequence": SEQUENCE, "predictions": PREDICTIONS, "one": 1}
    features = {
        feature.name: tf.io.FixedLenFeature([lengths[feature.length]], feature.dtype)
        for feature in FEATURES
    }

    def cast(example):
        return {
            name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value
            for name, value in example.items()
        }

    files = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths))
    records = files.interleave(
        tf.data.TFRecordDataset, cycle_length=8, num_parallel_calls=threads, deterministic=False
    ).shuffle(1000)
    if is_batched:
        batches = records.batch(batch_size).map(
            lambda batch: cast(tf.io.parse_example(batch, features)), threads
        )
    else:
        batches = records.map(
            lambda record: cast(tf.io.parse_single_example(record, features)), threads
        ).batch(batch_size)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    return batches.prefetch(2).with_options(options).__iter__


def tf_data_batched(paths: Sequence[str], batch_size: int, threads: int) -> Epoch:
    return tf_data(paths, batch_size, threads, is_batched=True)


def plain_python(paths: Sequence[str], batch_size: int, threads: int) -> Epoch:
    """bert/examples/example.py's readable decoder, one thread, no shuffle."""
    import numpy as np

    def epoch():
        rows = []
        for path in paths:
            with TFRecordFile(path) as file:
                for extent in file.extents():
                    rows.append(decode_example(file.payload(*extent), path))
                    if len(rows) == batch_size:
                        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
                        rows = []

    return epoch


LOADERS = {
    "raw_dali": (raw_dali, "DALI's TFRecord reader as it comes"),
    "ours": (ours, "`DaliDataloader`"),
    "without_dali": (without_dali, "the same, before DALI takes the batch"),
    "ours_instances": (ours_instances, "`DaliDataloader`, instance files"),
    "without_dali_instances": (without_dali_instances, "the same, before DALI takes the batch"),
    "tf_data": (tf_data, "tf.data as in MLPerf"),
    "tf_data_batched": (tf_data_batched, "tf.data, parsing whole batches"),
    "plain_python": (plain_python, "plain Python, one thread"),
}


def time_loader(
    name: str, paths: Sequence[str], batch_size: int, threads: int, seconds: float
) -> tuple[float, float]:
    """Returns (samples per second, CPU seconds per million samples) of a loader in this process."""
    epoch = LOADERS[name][0](paths, batch_size, threads)
    is_slow = name == "plain_python"
    if not is_slow:
        for _ in epoch():
            pass
    samples, started, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() - started < seconds:
        for batch in epoch():
            (batch,) = batch if isinstance(batch, list) else (batch,)
            samples += len(batch["input_ids"])
            if is_slow and time.monotonic() - started >= seconds:
                break
    return samples / (time.monotonic() - started), (time.process_time() - cpu) / samples * 1e6


# --------------------------------------------------------------------------------------------------
# Whole set, disk


def start_of_rank(
    paths: Sequence[str], rank: int, ranks: int, batch_size: int, threads: int
) -> dict[str, float]:
    """Returns this process's seconds until the loader and its batches are there, and its memory."""
    import bert_dali_dataloader  # noqa: F401

    baseline = private_megabytes()
    started = time.monotonic()
    loader = make_loader(paths, batch_size, threads, rank, ranks)
    made = time.monotonic()
    batches = iter(loader)
    next(batches)
    first = time.monotonic()
    for _ in range(200):
        next(batches)
    return {
        "records": loader.num_records, "imports_mb": baseline, "made_s": made - started,
        "first_batch_s": first - started, "next_200_s": time.monotonic() - first,
        "private_mb": private_megabytes(), "cpu_s": time.process_time(),
    }  # fmt: skip


def private_megabytes() -> float:
    """Memory of this process that no other shares: without files that are mapped."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return int(status["RssAnon"].split()[0]) / 1000


def measure_full_set(args: argparse.Namespace, folder: str) -> None:
    """500 names for one file of a 500th of MLPerf's examples: it is read 500 times, from memory;
    first as TFRecords, then as instances.
    """
    write_examples(f"{folder}/file", MLPERF_RECORDS // MLPERF_FILES, 1)
    for kind in ("", ".instances"):
        os.makedirs(f"{folder}/set{kind}")
        for ending in ("", ".idx") if kind == "" else (kind,):
            path = f"{folder}/file{ending}"
            print(f"{MLPERF_FILES} files of {os.path.getsize(path):,} bytes: part-*{ending}")
            for n in range(MLPERF_FILES):
                os.symlink(path, f"{folder}/set{kind}/part-{n:05d}-of-00500{ending}")
        measure_ranks(args, f"{folder}/set{kind}")


def measure_ranks(args: argparse.Namespace, folder: str) -> None:
    """Starts a loader of all files of a folder in each of 8 processes at once."""
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                f"--rank={rank}",
                f"--folder={folder}",
                f"--threads={args.threads}",
            ],
            stdout=subprocess.PIPE,
        )
        for rank in range(GPUS)
    ]
    for rank, process in enumerate(ranks):
        result = json.loads(process.communicate()[0])
        print(
            f"rank {rank} of {GPUS}: "
            + ", ".join(f"{name} {value:,.1f}" for name, value in result.items())
        )


def measure_disk(path: str) -> None:
    """Reads chunks at random places with one thread, as the loader does, from an empty cache."""
    size, generator = os.path.getsize(path), random.Random(1)
    print("| bytes a read | records of 2,500 bytes | MB/s |\n|---|---|---|")
    with open(path, "rb", buffering=0) as file:
        for records in (1, 4, 16, 64, 256, 1024):
            step = 2500 * records
            count = min(1000, max(20, 200_000_000 // step), size // step)
            offsets = sorted(generator.sample(range(0, size // step), count))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.monotonic()
            for number in offsets:
                os.posix_fadvise(file.fileno(), number * step, step, os.POSIX_FADV_WILLNEED)
            for number in offsets:
                os.pread(file.fileno(), step, number * step)
            print(
                f"| {step:,} | {records} | "
                f"{count * step / (time.monotonic() - started) / 1e6:,.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--records", type=int, default=64_000, help="(default: %(default)s)")
    add("--files", type=int, default=16, help="(default: %(default)s)")
    add("--batch_size", type=int, default=64, help="(default: %(default)s)")
    add("--threads", type=int, default=2, help="of each loader (default: %(default)s)")
    add("--seconds", type=float, default=4.0, help="measured per process (default: %(default)s)")
    add("--repeats", type=int, default=3, help="processes of each loader (default: %(default)s)")
    add(
        "--full_set",
        action="store_true",
        help="measure start and memory with MLPerf's number of records instead",
    )
    add("--disk", metavar="FILE", help="measure reads of several sizes instead")
    # These three: for the processes that this one starts.
    add("--loader", choices=LOADERS, help=argparse.SUPPRESS)
    add("--rank", type=int, help=argparse.SUPPRESS)
    add("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.disk:
        measure_disk(args.disk)
        return
    if args.folder:
        found = sorted(glob.glob(f"{args.folder}/part-*"))
        paths = [path for path in found if not path.endswith((".idx", ".instances"))]
        if args.loader:
            speed = time_loader(args.loader, paths, args.batch_size, args.threads, args.seconds)
            print(json.dumps(speed))
        else:
            print(json.dumps(start_of_rank(paths or found, args.rank, GPUS, 32, args.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.full_set:
            measure_full_set(args, folder)
            return
        with concurrent.futures.ProcessPoolExecutor() as pool:
            jobs = [
                pool.submit(write_examples, f"{folder}/part-{n:05d}", args.records // args.files, n)
                for n in range(args.files)
            ]
            for job in jobs:
                job.result()
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in LOADERS}
        for _ in range(args.repeats):
            for name in LOADERS:
                command = [
                    sys.executable,
                    __file__,
                    f"--loader={name}",
                    f"--folder={folder}",
                    f"--batch_size={args.batch_size}",
                ]
                command += [f"--threads={args.threads}", f"--seconds={args.seconds}"]
                results[name].append(
                    json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
                )
    print(
        f"{args.records:,} records, batch {args.batch_size}, {args.threads} threads, "
        f"{len(os.sched_getaffinity(0))} cores\n"
    )
    print(
        "| loader | samples/s | CPU s per million samples | "
        f"cores for {GPUS} GPUs at {SAMPLES_PER_GPU:,} samples/s |\n|---|---|---|---|"
    )
    for name, runs in results.items():
        rate, cpu = (sorted(values)[len(values) // 2] for values in zip(*runs))
        print(
            f"| {LOADERS[name][1]} | {rate:,.0f} | {cpu:,.1f} | "
            f"{cpu * GPUS * SAMPLES_PER_GPU / 1e6:.2f} |"
        )


if __name__ == "__main__":
    main()
