"""bert_dali_dataloader.py on the CPU: every record once, whatever the files, ranks and batch size; wrong indexes refused."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, synthetic_example

from bert.files import DataError
from bert_dali_dataloader import DaliDataloader, build_dali_eval, build_dali_train

SIZES = [(37, 5, 111), (1, 64, 1), (3,)]


def loaders(paths, index_paths, num_shards, **options):
    return [
        DaliDataloader(paths, index_paths, shard_id=shard, num_shards=num_shards, num_threads=1, cuda=False, **options)
        for shard in range(num_shards)
    ]


def numbers(loader):
    return [batch["input_ids"][:, 0].tolist() for batch in loader]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("num_shards", [1, 2, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_evaluation_covers_every_record_once_in_file_order(tfrecord_folder, sizes, num_shards, batch_size):
    shards = loaders(*tfrecord_folder(sizes), num_shards, batch_size=batch_size, training=False)
    for _ in range(2):
        batches = [numbers(shard) for shard in shards]
        assert [len(shard) for shard in batches] == [len(shard) for shard in shards]
        assert [number for shard in batches for batch in shard for number in batch] == list(range(sum(sizes)))


@pytest.mark.parametrize("sizes", SIZES[:2])
@pytest.mark.parametrize("num_shards", [1, 4])
def test_training_repeats_nothing_within_an_epoch(tfrecord_folder, sizes, num_shards):
    shards = loaders(*tfrecord_folder(sizes), num_shards, batch_size=4, training=True)
    epochs = []
    for _ in range(3):
        batches = [numbers(shard) for shard in shards]
        assert {len(shard) for shard in batches} == {sum(sizes) // num_shards // 4}
        assert {len(batch) for shard in batches for batch in shard} == {4}
        seen = [number for shard in batches for batch in shard for number in batch]
        assert len(seen) == len(set(seen)) and set(seen) <= set(range(sum(sizes)))
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_training_order_follows_the_seed(tfrecord_folder):
    files = tfrecord_folder([50, 50])

    def order(seed):
        return numbers(loaders(*files, 1, batch_size=10, training=True, seed=seed)[0])

    assert order(1) == order(1) != order(2)


def test_file_order_in_training(tfrecord_folder):
    (loader,) = loaders(*tfrecord_folder([5, 6]), 1, batch_size=5, training=True, shuffle=False)
    assert [numbers(loader) for _ in range(2)] == [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]] * 2


def test_all_seven_features(tfrecord_folder):
    (loader,) = loaders(*tfrecord_folder([9]), 1, batch_size=4, training=False)
    for first, batch in zip((0, 4, 8), loader):
        rows = [synthetic_example(number) for number in range(first, min(first + 4, 9))]
        assert batch.keys() == rows[0].keys()
        for name, tensor in batch.items():
            assert tensor.dtype == (torch.float32 if name == "masked_lm_weights" else torch.int64)
            assert tensor.device.type == "cpu"
            assert tensor.tolist() == [row[name] for row in rows]


def test_builders_glob_and_pair(tfrecord_folder, tmp_path):
    tfrecord_folder([5, 6])
    pattern = f"{tmp_path}/part-0000[0-9]"
    options = {"batch_size": 2, "num_threads": 1, "cuda": False}
    assert len(build_dali_train(pattern, pattern + ".idx", **options)) == 5
    assert len(build_dali_eval(pattern, pattern + ".idx", **options)) == 6


def test_stale_index_is_refused(tfrecord_folder, tmp_path):
    paths, index_paths = tfrecord_folder([5, 6])
    lines = (tmp_path / index_paths[1]).read_text().splitlines(keepends=True)
    (tmp_path / index_paths[1]).write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match=rf"(?s){index_paths[1]}: its last record ends at byte \d+, but .* make_idx.py"):
        loaders(paths, index_paths, 1, batch_size=1)


def test_indexes_are_paired_by_name(tfrecord_folder):
    paths, index_paths = tfrecord_folder([5, 6])
    (loader,) = loaders(paths, index_paths[::-1], 1, batch_size=11, training=False)
    assert numbers(loader) == [list(range(11))]
    with pytest.raises(DataError, match=f"{paths[1]}: no index part-00001.idx"):
        loaders(paths, index_paths[:1], 1, batch_size=1)
    with pytest.raises(DataError, match=f"{index_paths[0]}: the index of no file .* rm '{index_paths[0]}'"):
        loaders(paths[1:], index_paths, 1, batch_size=1)


def test_what_is_no_index_is_named(tfrecord_folder, tmp_path):
    paths, index_paths = tfrecord_folder([5])
    for content in (b"", b"garbage\n", b"1 2 3\n"):
        (tmp_path / index_paths[0]).write_bytes(content)
        with pytest.raises(DataError, match=f"{index_paths[0]}: not an index"):
            loaders(paths, index_paths, 1, batch_size=1)


@pytest.mark.parametrize("training", [False, True])
def test_epoch_after_one_that_was_left_early_is_whole(tfrecord_folder, training):
    (loader,) = loaders(*tfrecord_folder([9]), 1, batch_size=2, training=training)
    first = next(iter(loader))["input_ids"][:, 0].tolist()
    for batch in loader:
        break
    whole = [number for batch in numbers(loader) for number in batch]
    assert len(whole) == len(set(whole)) == (8 if training else 9)
    if not training:
        assert whole == list(range(9)) and first == [0, 1]


def test_too_few_records_for_a_training_batch(tfrecord_folder):
    with pytest.raises(DataError, match="11 records in 2 files make no batch of 6 on each of 2 ranks"):
        loaders(*tfrecord_folder([5, 6]), 2, batch_size=6)


def test_shard_number_out_of_range(tfrecord_folder):
    with pytest.raises(DataError, match="shard_id=2 with num_shards=2"):
        DaliDataloader(*tfrecord_folder([5]), batch_size=1, shard_id=2, num_shards=2, cuda=False)


def test_import_takes_no_tensorflow():
    code = "import sys, bert_dali_dataloader; print('tensorflow' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (process.stdout, process.stderr) == ("False\n", "")


def test_files_are_only_read(tfrecord_folder, tmp_path):
    paths, index_paths = tfrecord_folder([5])
    before = sorted(os.listdir(tmp_path))
    numbers(loaders(paths, index_paths, 1, batch_size=1)[0])
    assert sorted(os.listdir(tmp_path)) == before
