"""TFRecord files and their DALI indexes -> batches of pretraining examples, on the CPU or on a GPU.

    from bert_dali_dataloader import DaliDataloader
    loader = DaliDataloader(sorted(glob.glob("tfrecord/part-*")), sorted(glob.glob("idx/train/part-*.idx")),
                            batch_size=32, shard_id=rank, num_shards=world_size, num_threads=16, training=True, cuda=True)
    for epoch in range(3):
        for batch in loader:  # one epoch
            batch["input_ids"]  # int64 [batch_size, max_seq_length]

NVIDIA DALI reads and decodes. Each rank (`shard_id` of `num_shards`) gets its own share of the records; make_idx.py
writes the indexes.
"""

import os

from nvidia.dali import fn, pipeline_def
from nvidia.dali import tfrecord as dali_tfrecord
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from bert.example import FEATURES, decode_example
from bert.files import DataError, list_folder_or_pattern, raise_all
from bert.tfrecord import TFRecordFile

# Records in DALI's shuffle buffer. Files are mapped into memory, so that a waiting record costs a pointer.
SHUFFLE_BUFFER_RECORDS = 1 << 16


class DaliDataloader:
    """Iterating yields one epoch of batches: {feature name: torch tensor}, B rows each.

    `input_ids`, `input_mask`, `segment_ids`: int64 [B, max_seq_length]; `masked_lm_positions`, `masked_lm_ids`: int64
    [B, max_predictions_per_seq]; `masked_lm_weights`: float32, likewise; `next_sentence_labels`: int64 [B, 1]. The two
    lengths are those of the first record.

    training=True: every rank makes `len(loader)` batches of `batch_size`; what does not fill a batch on every rank is left
    out of this epoch. Records are shuffled (within a buffer of 65,536; from the second epoch on the files too).
    training=False: every record exactly once over all ranks, in file order; the last batch of a rank may be smaller and
    a rank may have fewer batches than another, or none.

    A `for` that is left early leaves its epoch; the next one starts a new epoch. One `for` at a time.

    Attributes: `num_records` (in all files), `first_example` (record 0 of the first file: {feature name: numpy array}).

    Args:
      tfrec_filenames: list of TFRecord files.
      tfrec_idx_filenames: list of their indexes: `<name>.idx` for the file `<name>`, in any order.
      batch_size: rows per batch on this rank.
      shard_id, num_shards: this rank's number and the number of ranks.
      num_threads: DALI's worker threads.
      cuda: batches on `cuda:<device_id>` instead of the CPU.
      seed: of the shuffle; the same on all ranks.
      shuffle: False for file order; default: as `training`.
      device_id: GPU for `cuda=True`; default: the environment's LOCAL_RANK, or 0.

    Raises DataError if files and indexes do not belong together, or hold too few records for one training batch.
    """

    def __init__(
        self, tfrec_filenames, tfrec_idx_filenames, batch_size=32, shard_id=0, num_shards=1, num_threads=4,
        training=True, cuda=True, *, seed=12345, shuffle=None, device_id=None,
    ):  # fmt: skip
        self.batch_size, self.shard_id, self.num_shards, self.training = batch_size, shard_id, num_shards, training
        pairs = pair_by_name(tfrec_filenames, tfrec_idx_filenames)
        self.num_records = check_indexes(pairs)
        if not 0 <= shard_id < num_shards:
            raise DataError(f"shard_id={shard_id} with num_shards={num_shards}: expected 0 to {num_shards - 1}")
        if training and len(self) == 0:
            raise DataError(
                f"{self.num_records} records in {len(tfrec_filenames)} files make no batch of {batch_size} on each of "
                f"{num_shards} ranks; lower the batch size or add data"
            )
        self.first_example = read_first_example(pairs[0][0])
        self._iterator = None  # made when first needed
        self._is_mid_epoch, self._restarts = False, 0
        if device_id is None:
            device_id = int(os.environ.get("LOCAL_RANK", 0))
        if shuffle is None:
            shuffle = training
        self._shuffle, self._seed = shuffle, seed
        self._pipeline_options = {
            "batch_size": batch_size,
            "num_threads": num_threads,
            "device_id": device_id if cuda else None,
            "paths": [path for path, _ in pairs],
            "index_paths": [index_path for _, index_path in pairs],
            "lengths": {name: len(values) for name, values in self.first_example.items()},
            "sharding": {"shard_id": shard_id, "num_shards": self._num_filled_shards(), "stick_to_shard": not shuffle},
            "cuda": cuda,
        }

    def __len__(self):
        """Batches of this rank per epoch."""
        if self.training:
            return self.num_records // self.num_shards // self.batch_size
        num_shards = self._num_filled_shards()
        if self.shard_id >= num_shards:
            return 0
        first, end = (self.num_records * shard // num_shards for shard in (self.shard_id, self.shard_id + 1))
        return -(-(end - first) // self.batch_size)

    def _num_filled_shards(self):
        """DALI refuses to make more shards than there are records: the ranks beyond get none."""
        return min(self.num_shards, self.num_records)

    def __iter__(self):
        if len(self) == 0:
            return
        if self._iterator is None or self._is_mid_epoch:
            self._iterator = self._start()
        self._is_mid_epoch = True
        # DALI's iterator is run to its end, past the batches that training leaves out: only then can it be reset.
        for number, (batch,) in enumerate(self._iterator):
            if number < len(self):
                yield batch
        self._iterator.reset()
        self._is_mid_epoch = False

    def _start(self):
        """A new DALI iterator: for the first epoch, and after an epoch that was left early, which DALI cannot reset."""
        seed = self._seed + 1_000_003 * self._restarts  # another order than that of the epoch left
        self._restarts += 1
        pipeline = _read_examples(
            **self._pipeline_options,
            seed=seed + self.shard_id,
            shuffling={"shuffle_after_epoch": True, "shuffle_after_epoch_seed": seed} if self._shuffle else {},
        )
        names = [feature.name for feature in FEATURES]
        return DALIGenericIterator(pipeline, names, reader_name="examples", last_batch_policy=LastBatchPolicy.PARTIAL)


@pipeline_def
def _read_examples(paths, index_paths, lengths, sharding, shuffling, cuda):
    types = {"int64": (dali_tfrecord.int64, 0), "float32": (dali_tfrecord.float32, 0.0)}  # with the default value
    examples = fn.readers.tfrecord(
        name="examples",
        path=paths,
        index_path=index_paths,
        features={
            feature.name: dali_tfrecord.FixedLenFeature([lengths[feature.name]], *types[feature.dtype]) for feature in FEATURES
        },
        random_shuffle=bool(shuffling),
        initial_fill=SHUFFLE_BUFFER_RECORDS,
        **shuffling,
        **sharding,
        pad_last_batch=True,  # with LastBatchPolicy.PARTIAL the only exact setting
        prefetch_queue_depth=2,
    )
    columns = (examples[feature.name] for feature in FEATURES)
    return tuple(column.gpu() if cuda else column for column in columns)


def build_dali_train(train_pattern, train_idx_pattern, **options):
    """DaliDataloader for training over the files of two patterns (folders or files will do), paired in sorted order.

    `options` are those of DaliDataloader.
    """
    return _build(train_pattern, train_idx_pattern, training=True, **options)


def build_dali_eval(eval_pattern, eval_idx_pattern, **options):
    """The same for evaluation: every record exactly once over all ranks, in file order."""
    return _build(eval_pattern, eval_idx_pattern, training=False, **options)


def _build(pattern, idx_pattern, **options):
    return DaliDataloader(list_folder_or_pattern(pattern), list_folder_or_pattern(idx_pattern), **options)


def pair_by_name(paths, index_paths):
    """Returns [(TFRecord path, index path)] in the order of the files; DataError names what has no partner."""
    indexes = {os.path.basename(path).removesuffix(".idx"): path for path in index_paths}
    names = [os.path.basename(path) for path in paths]
    problems = [
        f"{path}: no index {name}.idx among the indexes; {_REPAIR}" for path, name in zip(paths, names) if name not in indexes
    ]
    problems += [
        f"{path}: the index of no file among the TFRecords; if its file is gone on purpose: rm '{path}'"
        for name, path in indexes.items()
        if name not in names
    ]
    if len(set(names)) < len(names) or len(indexes) < len(index_paths):
        problems.append("two files of the same name in different folders: indexes are told apart by name; rename one")
    if not paths:
        problems.append("no TFRecord files were given")
    raise_all(problems)
    return [(path, indexes[name]) for path, name in zip(paths, names)]


def check_indexes(pairs):
    """Returns the number of records in all files; DataError if an index is not that of its file.

    Compares the end of the last record in each index with the size of its file: DALI itself takes an index that is too
    short and reads only part of the file.
    """
    num_records, problems = 0, []
    for path, index_path in pairs:
        with open(index_path, "rb") as file:
            lines = file.read().splitlines()
        size = os.path.getsize(path)
        try:
            offset, length = map(int, lines[-1].split())
        except (IndexError, ValueError):
            problems.append(f"{index_path}: not an index (lines `offset size`); {_REPAIR}")
            continue
        if offset + length != size:
            problems.append(
                f"{index_path}: its last record ends at byte {offset + length}, but {path} has {size} bytes; {_REPAIR}"
            )
        num_records += len(lines)
    raise_all(problems)
    return num_records


_REPAIR = "make it anew: python3 make_idx.py --tfrecord_train=... --tfrecord_eval=... --output_idx=..."


def read_first_example(path):
    """Returns record 0 of a TFRecord file as {feature name: array of its values}."""
    with TFRecordFile(path) as records:
        return decode_example(records.payload(*next(records.extents())), f"{path}: record 0")
