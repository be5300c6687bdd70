"""TFRecord files and their DALI indexes, or instance files -> batches of pretraining examples, on
the CPU or on a GPU.

    from bert_dali_dataloader import DaliDataloader
    loader = DaliDataloader(
        sorted(glob.glob("tfrecord/part-*")), sorted(glob.glob("idx/train/part-*.idx")),
        batch_size=32, shard_id=rank, num_shards=world_size, num_threads=16,
        training=True, cuda=True)
    for epoch in range(3):
        for batch in loader:  # one epoch
            batch["input_ids"]  # int64 [batch_size, max_seq_length]

Instance files need no index: DaliDataloader(sorted(glob.glob("instances/part-*")), [], ...).

The order of an epoch is a permutation of all records (bert/loader/shuffle.py). Global batch g has
the positions from g * batch_size * num_shards on; rank r takes every num_shards-th of them, from
the r-th on, or with balance=True those that give all ranks about as many tokens. Threads read and
decode; NVIDIA DALI (`fn.external_source`) moves the batches to their device. DALI's own TFRecord
reader shuffles only within a buffer, checks no checksum, and accepts a feature that is too short or
of another type without an error.
"""

import collections
import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from bert.common.files import DataError, is_remote, raise_if_any
from bert.common.path_flags import list_folder_or_pattern
from bert.examples.batch import INDICES, indices_of
from bert.loader.batches import iterate_batches
from bert.loader.index import build_missing_indexes, pair_by_name, read_indexes
from bert.loader.instance_source import InstanceSource, are_instance_files
from bert.loader.shares import balanced, in_turn
from bert.loader.shuffle import EpochOrder
from bert.loader.source import Source
from bert.loader.tfrecord_source import TFRecordSource

_STATE_VERSION = 1  # changes with the order of an epoch
_FEATURES = {"integers": types.INT64, "weights": types.FLOAT}  # as BatchLayout cuts them
_NO_LABEL = -100  # Hugging Face's losses, and torch's, leave such positions out
_INDICES = dict(zip(INDICES, (types.INT64, types.INT32, types.INT64), strict=True))

Batch = dict[str, torch.Tensor]
Position = tuple[int, int]  # epoch, records of its order that all ranks have got


class DaliDataloader:
    """Iterating yields one epoch of batches: {feature name: torch tensor}, B rows each.

    `input_ids`, `input_mask`, `segment_ids`: int64 [B, max_seq_length]; `masked_lm_positions`,
    `masked_lm_ids`: int64 [B, max_predictions_per_seq]; `masked_lm_weights`: float32 [B,
    max_predictions_per_seq]; `next_sentence_labels`: int64 [B, 1]. The two lengths are those of the
    first record.

    training=True: shuffled over all files, in another order each epoch. Every rank gets
    `len(loader)` batches of `batch_size`. Records that do not fill a batch on every rank are left
    out of this epoch; each epoch leaves out other records. training=False: every record exactly
    once over all ranks, in file order, distributed over the ranks in turn. Every rank gets
    `len(loader)` batches; the last one may be smaller, and has 0 rows on a rank for which no record
    is left.

    After a `break`, the next `for` starts the next epoch.

    Attributes: `num_records` (in all files), `first_example` (record 0 of the first file: {feature
    name: numpy array}), `files` (a small dict that identifies these files).

    Args:
      tfrec_filenames: list of TFRecord files, or of instance files, which give the same batches.
      tfrec_idx_filenames: list of their indexes: `<name>.idx` for the file `<name>`, in any order.
        Instance files have none: [] or None.
      batch_size: rows per batch on this rank.
      shard_id, num_shards: this rank's number and the number of ranks.
      num_threads: threads that decode.
      cuda: batches on `cuda:<device_id>` instead of the CPU.
      seed: of the shuffle, an integer; the same on all ranks.
      shuffle: False for file order; default: as `training`.
      device_id: GPU for `cuda=True`; default: the environment's LOCAL_RANK, or 0.
      prefetch: batches decoded ahead; default: 2 for each thread, at least 4.
      vocab_size: refuse token ids that are not below it; default: not checked.
      build_missing_indexes: write indexes that do not exist or are not in the list: beside the
        others, or beside the files.
      balance: within each global batch every rank gets about the same number of tokens (padding
        does not count). The same global batches, as many rows on each rank. Needs instance files.
      indices: batches also have `token_indices`, `token_offsets` and `prediction_indices`
        (bert/examples/batch.py): what is not padding, found on the CPU, for train.py.

    Raises DataError, before the first batch, if files and indexes do not belong together, sampled
    records (three of each file) are corrupt or not examples, or there are too few for one training
    batch; while iterating, for a record that is corrupt or not an example. The message has file and
    place.
    """

    def __init__(
        self, tfrec_filenames: Sequence[str], tfrec_idx_filenames: Sequence[str] | None,
        batch_size: int = 32, shard_id: int = 0, num_shards: int = 1, num_threads: int = 4,
        training: bool = True, cuda: bool = True, *, seed: int = 12345, shuffle: bool | None = None,
        device_id: int | None = None, prefetch: int | None = None, vocab_size: int | None = None,
        build_missing_indexes: bool = False, balance: bool = False, indices: bool = False,
    ):  # fmt: skip
        self.batch_size, self.shard_id, self.num_shards = batch_size, shard_id, num_shards
        self.training, self._cuda, self._num_threads = training, cuda, num_threads
        self._prefetch = max(4, 2 * num_threads) if prefetch is None else prefetch
        self._device_id = int(os.environ.get("LOCAL_RANK", 0)) if device_id is None else device_id
        self._seed, self._shuffle = seed, training if shuffle is None else shuffle
        self._check_options(tfrec_filenames, tfrec_idx_filenames)
        paths = [os.fspath(path) for path in tfrec_filenames]
        index_paths = [os.fspath(path) for path in tfrec_idx_filenames or []]
        self._source = self._open_files(paths, index_paths, vocab_size, build_missing_indexes)
        self._balance, self._indices = balance, indices
        if balance and not self._source.knows_lengths:
            raise DataError(
                "balance=True deals out by length, which TFRecord files do not tell: make instance "
                "files (--output_format=instances), or leave it out"
            )
        self.num_records: int = self._source.num_records
        if training and len(self) == 0:
            raise DataError(
                f"{self.num_records} records in {len(tfrec_filenames)} files make no batch of "
                f"{batch_size} on each of {num_shards} ranks; lower the batch size or add data"
            )
        self.first_example = self._source.first_example
        # After the last batch given out, and where the next `for` starts.
        self._position = self._next_start = (0, 0)
        self._idle_feed: _DaliFeed | None = None

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        return self._num_steps(0)

    def _num_steps(self, position):
        """Batches of each rank from a position of an epoch to its end."""
        global_batch, remaining = self.batch_size * self.num_shards, self.num_records - position
        return remaining // global_batch if self.training else -(-remaining // global_batch)

    def _end(self, position):
        """Where the last of these batches ends."""
        end = position + self._num_steps(position) * self.batch_size * self.num_shards
        return min(end, self.num_records)

    def _order(self, epoch):
        return EpochOrder(self.num_records, self._seed, epoch, self._shuffle)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._next_start
        self._next_start = (epoch + 1, 0)
        end, global_batch = self._end(start), self.batch_size * self.num_shards
        # In evaluation a rank may have no record left for the last step.
        num_own = len(range(start + self.shard_id, end, self.num_shards))
        num_empty = self._num_steps(start) - -(-num_own // self.batch_size)
        batches = itertools.chain(
            self._decoded(epoch, start, end) if num_own else (),
            itertools.repeat(self._empty_batch(), num_empty),
        )
        for step, batch in enumerate(batches, start=1):
            self._position = (epoch, min(start + step * global_batch, end))
            yield batch
        self._position = (epoch + 1, 0)

    # ----------------------------------------------------------------------------------------------
    # Position

    @property
    def files(self) -> dict[str, int | str]:
        """Number, bytes and records of the files, and a digest of their names and sizes."""
        return self._source.fingerprint()

    @property
    def position(self) -> Position:
        """(epoch, records of its order that all ranks have got), after the last batch given out."""
        return self._position

    def records_between(self, start: Position, end: Position) -> list[tuple[str, int]]:
        """Returns [(file name, number of the record in it)] of the records that all ranks got
        between two positions.
        """
        (epoch, first), (last_epoch, last) = start, end
        found: list[int] = []
        while epoch <= last_epoch:
            end_in_epoch = last if epoch == last_epoch else self._end(first)
            found += self._order(epoch).records(range(first, end_in_epoch)).tolist()
            epoch, first = epoch + 1, 0
        places = map(self._source.file_of_record, found)
        return [(os.path.basename(path), number) for path, number in places]

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last batch given out: a small dict, also for JSON.

        It is the same on all ranks after the same number of steps.
        """
        epoch, position = self._position
        return {
            "version": _STATE_VERSION, "epoch": epoch, "position": position, "seed": self._seed,
            "shuffle": self._shuffle, "training": self.training, "batch_size": self.batch_size,
            "num_shards": self.num_shards, "files": self.files,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next `for` gives the rest of the epoch of `state` (nothing after its last batch).

        With another batch size or number of ranks it resumes at the same place of the same order,
        and prints a note. DataError for other files, another seed or another kind of loader, which
        have another order.
        """
        own = self.state_dict()
        is_dict = isinstance(state, dict)
        if not is_dict or state.keys() != own.keys() or state["version"] != own["version"]:
            found = {**state, "files": "..."} if is_dict else state
            raise DataError(
                f"not a state of this version of the loader: expected the keys {', '.join(own)} "
                f"and version {_STATE_VERSION}, found {found}"
            )
        raise_if_any([
            f"the state was taken with {name}={state[name]!r}, this loader has {own[name]!r}: "
            "another order; make the loader with the same options, or start without the state"
            for name in ("seed", "shuffle", "training", "files")
            if state[name] != own[name]
        ])  # fmt: skip
        if not all(isinstance(state[name], int) for name in ("epoch", "position")):
            raise DataError(
                f"epoch {state['epoch']!r}, position {state['position']!r}: expected two integers"
            )
        if not (state["epoch"] >= 0 and 0 <= state["position"] <= self.num_records):
            raise DataError(
                f"epoch {state['epoch']}, position {state['position']}: "
                f"expected 0 to {self.num_records}"
            )
        changes = [
            f"{name} {own[name]} instead of {state[name]}"
            for name in ("batch_size", "num_shards")
            if state[name] != own[name]
        ]
        if changes and self.shard_id == 0:
            print(
                f"note: {', '.join(changes)}: epoch {state['epoch']} resumes after the "
                f"{state['position']:,} records that were already given out",
                file=sys.stderr,
            )
        self._position = self._next_start = (state["epoch"], state["position"])

    # ----------------------------------------------------------------------------------------------
    # Checks before the first batch

    def _check_options(self, paths, index_paths):
        numbers = {
            "batch_size": self.batch_size, "num_shards": self.num_shards,
            "num_threads": self._num_threads, "prefetch": self._prefetch, "shard_id": self.shard_id,
            "seed": self._seed, "device_id": self._device_id,
        }  # fmt: skip
        switches = {"training": self.training, "cuda": self._cuda, "shuffle": self._shuffle}
        lists = {"tfrec_filenames": paths, "tfrec_idx_filenames": index_paths or []}
        problems = [
            f"{name}={value!r}: expected an integer"
            for name, value in numbers.items()
            if isinstance(value, bool) or not isinstance(value, (int, np.integer))
        ]
        problems += [
            f"{name}={value!r}: expected True or False"
            for name, value in switches.items()
            if value not in (True, False)
        ]
        problems += [
            f"{name}={value!r}: expected a list of files; build_dali_train takes a pattern"
            for name, value in lists.items()
            if isinstance(value, (str, os.PathLike))
            or not isinstance(value, Sequence)
            or not all(isinstance(path, (str, os.PathLike)) for path in value)
        ]
        raise_if_any(problems)
        problems = [
            f"{name}={numbers[name]}: expected 1 or more"
            for name in ("batch_size", "num_shards", "num_threads", "prefetch")
            if numbers[name] < 1
        ]
        if not 0 <= self.shard_id < self.num_shards:
            problems.append(
                f"shard_id={self.shard_id} with num_shards={self.num_shards}: "
                f"expected 0 to {self.num_shards - 1}"
            )
        if self._cuda and not 0 <= self._device_id < torch.cuda.device_count():
            problems.append(
                f"cuda=True with device_id={self._device_id}, but torch finds "
                f"{torch.cuda.device_count()} GPUs here; cuda=False gives batches on the CPU"
            )
        raise_if_any(problems)

    def _open_files(self, paths, index_paths, vocab_size, build_missing) -> Source:
        if are_instance_files(paths):
            if index_paths:
                raise DataError(
                    f"tfrec_idx_filenames: {len(index_paths)} indexes, but {paths[0]} is an "
                    "instance file, which needs none: give []"
                )
            return InstanceSource(
                paths, vocab_size, self._num_threads, self.shard_id, self.num_shards
            )
        if build_missing:
            first = len(paths) * self.shard_id // self.num_shards
            index_paths = build_missing_indexes(paths, index_paths, first, self._num_threads)
        index = read_indexes(pair_by_name(paths, index_paths), self._num_threads)
        return TFRecordSource(index, vocab_size, self._num_threads)

    # ----------------------------------------------------------------------------------------------
    # Batches

    def _decoded(self, epoch, start, end) -> Iterator[Batch]:
        """Yields this rank's batches between two positions of an epoch as tensors on their
        device.
        """
        share = (self._order(epoch), start, end, self.shard_id, self.num_shards)
        parts = (
            balanced(*share, self.batch_size, self._source.lengths_of)
            if self._balance
            else in_turn(*share)
        )
        batches = iterate_batches(
            self._source, parts, self.batch_size, self._num_threads, self._prefetch, self._indices
        )
        feed = self._idle_feed or _DaliFeed(
            self._device_id if self._cuda else None, self._array_types
        )
        self._idle_feed = None
        with contextlib.closing(batches):
            for arrays in feed.run(batches):
                yield self._cut(arrays)
        # A feed can only run again after its end: after an error or a `break`, the next epoch makes
        # its own.
        self._idle_feed = feed

    @property
    def _array_types(self):
        """{name of an array in which a batch comes to its device: its type for DALI}."""
        return _FEATURES | (_INDICES if self._indices else {})

    def _cut(self, arrays) -> Batch:
        integers, weights, *indices = arrays
        return self._source.layout.split(integers, weights) | dict(zip(_INDICES, indices))

    def _empty_batch(self) -> Batch:
        arrays = [*self._source.layout.empty(0)]
        if self._indices:
            batch = self._source.layout.split(*arrays)
            arrays += indices_of(batch["input_mask"], batch["masked_lm_weights"]).values()
        device = torch.device("cuda", self._device_id) if self._cuda else torch.device("cpu")
        return self._cut([torch.from_numpy(array).to(device) for array in arrays])


class _DaliFeed:
    """A DALI pipeline that moves batches to their device.

    `device_id`: None for the CPU. `array_types`: {name of an array of a batch: its type for DALI}.
    """

    def __init__(self, device_id: int | None, array_types: dict[str, Any]):
        self._device_id, self._array_types = device_id, array_types
        self._batches: Iterator[tuple[np.ndarray, ...]] = iter(())
        self._iterator: DALIGenericIterator | None = None
        self._copies = None if device_id is None else _Copies()

    def run(self, batches):
        """Yields a list of torch tensors for each tuple of numpy arrays in an iterator; all [n]."""
        self._batches = batches
        if self._iterator is None:
            # A whole batch is one sample for DALI, its features in two arrays: 9 us of CPU per
            # record at batch 64; with seven arrays 11 us.
            pipeline = _take_batches(
                lambda _: next(self._batches), list(self._array_types.values()),
                self._device_id is not None, batch_size=1, num_threads=1,
                device_id=self._device_id, prefetch_queue_depth=2,
            )  # fmt: skip
            self._iterator = DALIGenericIterator(pipeline, list(self._array_types))
        else:
            self._iterator.reset()
        for (output,) in self._iterator:
            tensors = [output[name][0] for name in self._array_types]
            yield self._copies.copy(tensors) if self._copies else tensors


def _event_behind_queue(device):
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


class _Copies:
    """Copies DALI's tensors on a GPU into memory of torch.

    DALI reuses the memory of a tensor that Python has dropped, and does not know of torch's queue,
    in which kernels may still have to read it. So a tensor is kept until its copy is made, which an
    event behind the copy in the queue tells.
    """

    def __init__(self, event_behind_queue: Callable[[torch.device], Any] = _event_behind_queue):
        self._event_behind_queue = event_behind_queue
        self._kept: collections.deque = collections.deque()  # (event, tensors), oldest first

    def copy(self, tensors):
        copies = [tensor.clone() for tensor in tensors]
        self._kept.append((self._event_behind_queue(tensors[0].device), tensors))
        while self._kept and self._kept[0][0].query():
            self._kept.popleft()
        return copies


@pipeline_def
def _take_batches(next_batch, array_types, cuda):
    columns = fn.external_source(
        source=next_batch, num_outputs=len(array_types), batch=False, dtype=array_types
    )
    return tuple(column.gpu() if cuda else column for column in columns)


def huggingface_batch(batch: Batch) -> Batch:
    """Returns a batch of this loader as the arguments of Hugging Face's `BertForPreTraining`.

    `model(**huggingface_batch(batch)).loss` is then the loss that train.py minimizes: the mean over
    the predictions, plus the mean next-sentence loss over the examples (NaN if the batch has no
    prediction at all). `input_ids`, `attention_mask`, `token_type_ids`, `labels`: int64 [B,
    max_seq_length]; `next_sentence_label`: int64 [B]. `labels` has the token's id where one is to
    be predicted, and -100 elsewhere.

    New tensors are on the device of the batch, and nothing waits for a GPU.
    """
    input_ids = batch["input_ids"]
    num_rows, seq_length = input_ids.shape
    # Unused places for predictions have weight 0 and position 0; they go into a column of their
    # own, which is cut off.
    positions = batch["masked_lm_positions"].where(batch["masked_lm_weights"] != 0, seq_length)
    labels = input_ids.new_full((num_rows, seq_length + 1), _NO_LABEL)
    labels.scatter_(1, positions, batch["masked_lm_ids"])
    return {
        "input_ids": input_ids,
        "attention_mask": batch["input_mask"],
        "token_type_ids": batch["segment_ids"],
        "labels": labels[:, :seq_length].contiguous(),
        "next_sentence_label": batch["next_sentence_labels"].flatten(),
    }


def build_dali_train(
    train_pattern: str, train_idx_pattern: str | None = None, **options: Any
) -> DaliDataloader:
    """Returns a DaliDataloader for training over the files of two patterns (or folders, or files),
    paired by name; instance files need no second one.

    `options` are those of DaliDataloader. With build_missing_indexes=True the second is a folder,
    created if needed.
    """
    return _build(train_pattern, train_idx_pattern, training=True, **options)


def build_dali_eval(
    eval_pattern: str, eval_idx_pattern: str | None = None, **options: Any
) -> DaliDataloader:
    """Returns one for evaluation: every record exactly once over all ranks, in file order."""
    return _build(eval_pattern, eval_idx_pattern, training=False, **options)


def _build(pattern, idx_pattern, **options):
    for name, value in (("the first pattern", pattern), ("the second pattern", idx_pattern)):
        if not isinstance(value, str | None):
            raise DataError(f"{name} is {value!r}: expected a folder, a file or a pattern (str)")
        if is_remote(value or ""):
            raise DataError(
                f"{value}: the loader reads local files only; copy them to a disk, or mount them "
                "as a folder"
            )
    paths = list_folder_or_pattern(pattern)
    index_paths = []
    if idx_pattern is not None and options.get("build_missing_indexes"):
        index_paths = [os.path.join(idx_pattern, f"{os.path.basename(path)}.idx") for path in paths]
    elif idx_pattern is not None:
        index_paths = list_folder_or_pattern(idx_pattern)
    return DaliDataloader(paths, index_paths, **options)
