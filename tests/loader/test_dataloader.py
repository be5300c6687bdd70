"""bert_dali_dataloader.py on the CPU: every record once, whatever the files, ranks and batch size;
an exact position.
"""

import itertools
import json
import os
import threading
import weakref

import numpy as np
import pytest
import torch
from conftest import synthetic_example

import bert.loader.shuffle
from bert.common.files import DataError
from bert.examples.records import seal_records
from bert.examples.tfrecord import frame, write_index
from bert_dali_dataloader import DaliDataloader, _Copies, build_dali_eval, build_dali_train
from tests.reference.example import encode_example
from tests.script_server import script_server

SIZES = [(37, 5, 111), (1, 64, 1), (3,)]


def loaders(paths, index_paths, num_shards, **options):
    return [
        DaliDataloader(
            paths,
            index_paths,
            shard_id=shard,
            num_shards=num_shards,
            **{"num_threads": 1, "cuda": False, "prefetch": 2} | options,
        )
        for shard in range(num_shards)
    ]


def numbers(loader):
    """The records of each batch of one epoch."""
    return [batch["input_ids"][:, 0].tolist() for batch in loader]


def global_batches(shards):
    """The records of each step over all ranks, in the order of the epoch; every rank makes the same
    number of steps.
    """
    steps = list(zip(*map(numbers, shards), strict=True))
    return [
        [rows[i] for i in range(max(map(len, step))) for rows in step if i < len(rows)]
        for step in steps
    ]


def flatten(batches):
    return [number for batch in batches for number in batch]


@pytest.fixture(params=[False, True], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """Chunks of three records, and blocks that end within batches, as large sets have them."""
    if request.param:
        monkeypatch.setattr(bert.loader.shuffle, "_MIN_CHUNKS", 20)
        monkeypatch.setattr(bert.loader.shuffle, "BLOCK_RECORDS", 29)
        monkeypatch.setattr(bert.loader.shuffle, "FILE_ORDER_BLOCK_RECORDS", 13)


@pytest.mark.parametrize(
    "sizes, num_shards, batch_size",
    [*itertools.product(SIZES, [1, 2, 4, 7, 16], [1, 16]), (SIZES[0], 64, 1)],
)
def test_evaluation_covers_every_record_once_in_file_order(
    tfrecord_folder, blocks, sizes, num_shards, batch_size
):
    shards = loaders(*tfrecord_folder(sizes), num_shards, batch_size=batch_size, training=False)
    steps = -(-sum(sizes) // (num_shards * batch_size))
    assert {len(shard) for shard in shards} == {steps}
    for _ in range(2):
        batches = global_batches(shards)
        assert len(batches) == steps
        assert flatten(batches) == list(range(sum(sizes)))


def test_batch_of_a_rank_without_records(tfrecord_folder):
    shards = loaders(*tfrecord_folder([3]), 4, batch_size=2, training=False)
    (batch,) = shards[3]
    (other,) = shards[2]
    assert {name: (tensor.dtype, *tensor.shape[1:]) for name, tensor in batch.items()} == {
        name: (tensor.dtype, *tensor.shape[1:]) for name, tensor in other.items()
    }
    assert len(batch["input_ids"]) == 0 and len(other["input_ids"]) == 1


def test_indices_of_what_is_not_padding(tfrecord_folder):
    """Also of the batch of a rank without records."""
    for shard in loaders(*tfrecord_folder([3]), 4, batch_size=2, training=False, indices=True):
        (batch,) = shard
        rows = len(batch["input_ids"])
        tokens = batch["input_mask"].flatten().nonzero().squeeze(1)
        assert torch.equal(batch["token_indices"], tokens)
        lengths = batch["input_mask"].sum(1)
        assert batch["token_offsets"].dtype == torch.int32 and batch["token_offsets"][0] == 0
        assert batch["token_offsets"].diff().tolist() == lengths.tolist() and len(lengths) == rows
        predictions = batch["masked_lm_weights"].flatten().nonzero().squeeze(1)
        assert torch.equal(batch["prediction_indices"], predictions)
        assert (len(tokens) > 0) == (rows > 0)


@pytest.mark.parametrize(
    "sizes, num_shards", [(SIZES[0], 1), (SIZES[0], 4), (SIZES[1], 2), ((300, 1, 99), 64)]
)
def test_training_repeats_nothing_within_an_epoch(tfrecord_folder, blocks, sizes, num_shards):
    shards = loaders(*tfrecord_folder(sizes), num_shards, batch_size=4, training=True)
    epochs = []
    for _ in range(3):
        batches = [numbers(shard) for shard in shards]
        assert (
            {len(shard) for shard in batches} == {sum(sizes) // num_shards // 4} == {len(shards[0])}
        )
        assert {len(batch) for shard in batches for batch in shard} == {4}
        seen = flatten(flatten(batches))
        assert len(seen) == len(set(seen)) and set(seen) <= set(range(sum(sizes)))
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_records_left_out_differ_from_epoch_to_epoch(tfrecord_folder):
    (loader,) = loaders(*tfrecord_folder([30, 30]), 1, batch_size=16, training=True)
    left_out = [frozenset(range(60)) - set(flatten(numbers(loader))) for _ in range(4)]
    assert {len(records) for records in left_out} == {12}
    assert len(set(left_out)) == 4


def test_global_batches_do_not_depend_on_the_ranks(tfrecord_folder, blocks):
    files = tfrecord_folder([50, 47])
    orders = [
        global_batches(loaders(*files, shards, batch_size=16 // shards)) for shards in (1, 2, 4, 8)
    ]
    assert orders[0] == orders[1] == orders[2] == orders[3]


@pytest.mark.slow
def test_500_files_of_1000_records(tmp_path):
    """Real files, of small records: batches of 2 ranks from at least 100 files, every record once,
    in bounded memory.
    """
    zero = 1 << 20  # numbers of three bytes in a record
    record = frame(
        encode_example(
            synthetic_example(0, seq_length=4, predictions=1) | {"input_ids": [zero, 0, 0, 0]}
        )
    )
    place, size = record.index(b"\x80\x80\x40"), len(record)
    index = "".join(f"{i * size} {size}\n" for i in range(1000))
    paths = [str(tmp_path / f"part-{n:05d}") for n in range(500)]
    for n, path in enumerate(paths):
        values = np.arange(1000 * n, 1000 * n + 1000)
        records = np.tile(np.frombuffer(record, np.uint8), (1000, 1))
        for octet, bits in enumerate((values | 0x80, values >> 7 | 0x80, values >> 14 | 0x40)):
            records[:, place + octet] = bits & (0xFF if octet < 2 else 0x7F)
        seal_records(records.reshape(-1), np.arange(1, 1001) * size)
        records.tofile(path)
        with open(f"{path}.idx", "w") as file:
            file.write(index)
    shards = loaders(paths, [f"{path}.idx" for path in paths], 2, batch_size=128, num_threads=2)
    batches = global_batches(shards)
    seen = torch.tensor(batches) - zero
    assert len(batches) == 500_000 // 256
    assert min(len(set(batch)) for batch in (seen // 1000).tolist()) >= 100
    assert len(seen.unique()) == seen.numel()


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


def test_epochs_side_by_side_do_not_mix(tfrecord_folder):
    """Also when the one begun first is dropped while the other runs."""
    (loader,) = loaders(*tfrecord_folder([60]), 1, batch_size=4)
    (alone,) = loaders(*tfrecord_folder([60]), 1, batch_size=4)
    expected = [numbers(alone) for _ in range(3)]
    first, second = iter(loader), iter(loader)
    pairs = [[batch["input_ids"][:, 0].tolist() for batch in pair] for pair in zip(first, second)]
    assert [list(epoch) for epoch in zip(*pairs)] == expected[:2]
    third, fourth = iter(loader), iter(loader)
    found = [next(third)["input_ids"][:, 0].tolist()]
    next(fourth)
    del fourth
    assert found + numbers(third) == expected[2]


def test_batches_can_be_saved(tfrecord_folder, tmp_path):
    (loader,) = loaders(*tfrecord_folder([8]), 1, batch_size=4)
    batches = list(loader)
    torch.save(batches, tmp_path / "batches")
    for one, other in zip(
        batches, torch.load(tmp_path / "batches", weights_only=True), strict=True
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_batches_stay_as_they_are_while_others_are_made(tfrecord_folder):
    """DALI uses its memory again: a batch that is kept must not change."""
    (loader,) = loaders(*tfrecord_folder([300]), 1, batch_size=7, training=False)
    kept = list(loader)
    assert flatten([batch["input_ids"][:, 0].tolist() for batch in kept]) == list(range(300))
    rows = torch.cat([batch["masked_lm_ids"] for batch in kept]).tolist()
    assert rows == [synthetic_example(number)["masked_lm_ids"] for number in range(300)]


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
    with pytest.raises(
        DataError,
        match=rf"(?s){index_paths[1]}: its last record ends at byte \d+, but .* make_idx.py",
    ):
        loaders(paths, index_paths, 1, batch_size=1)


def test_indexes_are_paired_by_name(tfrecord_folder):
    paths, index_paths = tfrecord_folder([5, 6])
    (loader,) = loaders(paths, index_paths[::-1], 1, batch_size=11, training=False)
    assert numbers(loader) == [list(range(11))]
    with pytest.raises(DataError, match=f"{paths[1]}: no index part-00001.idx"):
        loaders(paths, index_paths[:1], 1, batch_size=1)
    with pytest.raises(
        DataError, match=f"{index_paths[0]}: the index of no file .* leave its index out"
    ):
        loaders(paths[1:], index_paths, 1, batch_size=1)
    with pytest.raises(DataError, match="the two lists are swapped"):
        loaders(index_paths, paths, 1, batch_size=1)


def test_what_is_no_index_is_reported(tfrecord_folder, tmp_path):
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
    with pytest.raises(
        DataError, match="11 records in 2 files make no batch of 6 on each of 2 ranks"
    ):
        loaders(*tfrecord_folder([5, 6]), 2, batch_size=6)


def test_shard_number_out_of_range(tfrecord_folder):
    with pytest.raises(DataError, match="shard_id=2 with num_shards=2"):
        DaliDataloader(*tfrecord_folder([5]), batch_size=1, shard_id=2, num_shards=2, cuda=False)


def test_files_are_only_read(tfrecord_folder, tmp_path):
    paths, index_paths = tfrecord_folder([5])
    before = sorted(os.listdir(tmp_path))
    numbers(loaders(paths, index_paths, 1, batch_size=1)[0])
    assert sorted(os.listdir(tmp_path)) == before


# --------------------------------------------------------------------------------------------------
# Position


def rest(loader):
    """All that is left of this epoch, and the next one."""
    return [numbers(loader), numbers(loader)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_resumes_after_the_batch_given_out_last(tfrecord_folder, blocks, training, stop):
    files = tfrecord_folder([37, 5])
    options = {"batch_size": 4, "training": training, "prefetch": 5}
    (loader,) = loaders(*files, 1, **options)
    numbers(loader)
    batches = iter(loader)
    for _ in range(stop):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    expected = [[batch["input_ids"][:, 0].tolist() for batch in batches], numbers(loader)]
    assert len(expected[0]) == len(loader) - stop
    (resumed,) = loaders(*files, 1, **options)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert rest(resumed) == expected


@pytest.mark.parametrize("sizes", [[20], [24]], ids=["partial last batch", "whole last batch"])
def test_position_in_an_evaluation_epoch(tfrecord_folder, sizes):
    """Also where the last batches are smaller, none is behind the last record."""
    shards = loaders(*tfrecord_folder(sizes), 2, batch_size=4, training=False)
    for epoch in range(2):
        positions = [[shard.position for _ in shard] for shard in shards]
        assert positions == [[(epoch, 8), (epoch, 16), (epoch, sizes[0])]] * 2
        assert {shard.position for shard in shards} == {(epoch + 1, 0)}


@pytest.mark.parametrize("training", [False, True])
def test_resumes_after_the_last_batch_of_an_epoch(tfrecord_folder, training):
    """Inside the `for` nothing of the epoch is left; behind it, the next epoch comes."""
    files = tfrecord_folder([20])
    (loader,) = loaders(*files, 1, batch_size=6, training=training)
    states = [loader.state_dict() for _ in loader] + [loader.state_dict()]
    following = numbers(loader)
    for state, expected in ((states[-2], [[], following]), (states[-1], [following])):
        (resumed,) = loaders(*files, 1, batch_size=6, training=training)
        resumed.load_state_dict(state)
        assert [numbers(resumed) for _ in expected] == expected


def test_records_between_two_positions(tfrecord_folder, blocks):
    """Those of the batches given out meanwhile, over all ranks and the ends of epochs."""
    files = tfrecord_folder([37, 5, 11])
    shards = loaders(*files, 2, batch_size=3)
    running = [itertools.chain.from_iterable(itertools.repeat(shard)) for shard in shards]
    for num_steps in (0, 1, 4, 7, 20):  # an epoch has 8
        start, given = shards[0].position, []
        for _ in range(num_steps):
            step = [next(batches)["input_ids"][:, 0].tolist() for batches in running]
            given += [number for pair in zip(*step) for number in pair]
        found = shards[1].records_between(start, shards[0].position)
        assert [
            {"part-00000": 0, "part-00001": 37, "part-00002": 42}[name] + number
            for name, number in found
        ] == given


def run_code(code, *arguments, **options):
    """Runs a program in a process of its own."""
    return script_server("bert_dali_dataloader").run_code(code, *arguments, **options)


RESUME = """
import json, sys, torch
from bert_dali_dataloader import DaliDataloader
paths, indexes, state = json.loads(sys.argv[1])
loader = DaliDataloader(paths, indexes, batch_size=4, num_threads=3, cuda=False)
loader.load_state_dict(state)
torch.save([batch for _ in range(2) for batch in loader], sys.argv[2])
"""


def test_a_new_process_resumes_bit_for_bit(tfrecord_folder, tmp_path):
    files = tfrecord_folder([37, 30])
    (loader,) = loaders(*files, 1, batch_size=4)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    argument = json.dumps([*files, loader.state_dict()])
    process = run_code(RESUME, argument, f"{tmp_path}/rest")
    assert process.returncode == 0, process.stderr
    expected = list(batches) + list(loader)
    found = torch.load(f"{tmp_path}/rest", weights_only=True)
    assert len(found) == len(expected) == 11 + 16
    for one, other in zip(expected, found):
        assert one.keys() == other.keys() and all(
            torch.equal(one[name], other[name]) for name in one
        )


@pytest.mark.parametrize(
    "before, after", [((2, 8), (4, 4)), ((2, 8), (3, 5)), ((4, 3), (1, 7)), ((1, 5), (64, 1))]
)
def test_another_number_of_ranks_resumes_in_the_same_order(
    tfrecord_folder, blocks, before, after, capfd
):
    files = tfrecord_folder([100, 53])
    (alone,) = loaders(*files, 1, batch_size=1)
    whole = flatten(numbers(alone))
    shards = loaders(*files, before[0], batch_size=before[1])
    running = [iter(shard) for shard in shards]
    for _ in range(3):
        for batches in running:
            next(batches)
    states = [shard.state_dict() for shard in shards]
    assert all(state == states[0] for state in states)
    resumed = loaders(*files, after[0], batch_size=after[1])
    for shard in resumed:
        shard.load_state_dict(states[0])
    assert capfd.readouterr().err == (
        f"note: batch_size {after[1]} instead of {before[1]}, num_shards {after[0]} instead of "
        f"{before[0]}: epoch 0 resumes after the {3 * before[0] * before[1]} records that were "
        "already given out\n"
    )
    start = 3 * before[0] * before[1]
    end = start + (153 - start) // (after[0] * after[1]) * after[0] * after[1]
    assert flatten(global_batches(resumed)) == whole[start:end]
    assert (
        len(flatten(global_batches(resumed))) == 153 // (after[0] * after[1]) * after[0] * after[1]
    )


def test_state_of_another_order_is_refused(tfrecord_folder):
    paths, index_paths = tfrecord_folder([20, 21])
    (loader,) = loaders(paths, index_paths, 1, batch_size=2)
    state = loader.state_dict()
    for options, words in (
        ({"seed": 2}, "seed=12345, this loader has 2"),
        ({"shuffle": False}, "shuffle=True, this loader has False"),
        ({"training": False}, "training=True, this loader has False"),
    ):
        (other,) = loaders(paths, index_paths, 1, batch_size=2, **options)
        with pytest.raises(DataError, match=f"taken with {words}"):
            other.load_state_dict(state)
    (other,) = loaders(paths[:1], index_paths[:1], 1, batch_size=2)
    with pytest.raises(DataError, match="files={'files': 2, .* this loader has {'files': 1"):
        other.load_state_dict(state)
    for wrong in (
        None,
        {},
        state | {"version": 0},
        {name: state[name] for name in state if name != "seed"},
    ):
        with pytest.raises(DataError, match="not a state of this version"):
            loader.load_state_dict(wrong)
    for wrong in ({"epoch": -1}, {"position": -1}, {"position": 42}):
        with pytest.raises(DataError, match="expected 0 to 41"):
            loader.load_state_dict(state | wrong)
    # A refused state changes nothing.
    assert numbers(loader) == numbers(loaders(paths, index_paths, 1, batch_size=2)[0])


# --------------------------------------------------------------------------------------------------
# Input that is wrong


def rewrite(path, change):
    """Changes values of a file's examples: change(number in the file, values) -> values."""
    count = sum(1 for _ in open(f"{path}.idx"))
    with open(path, "wb") as file:
        file.writelines(
            frame(encode_example(change(n, synthetic_example(n)))) for n in range(count)
        )
    write_index(path, f"{path}.idx")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"segment_ids": [0] * 15}, "segment_ids has 15 values, expected 16"),
        ({"masked_lm_positions": [0, 1, 16]}, "masked_lm_positions holds 16"),
        (
            {"input_ids": [5000] * 16},
            "input_ids holds token id 5000, expected 0 to below vocab_size 1000",
        ),
    ],
)
@pytest.mark.parametrize("record", [0, 19, 7])
def test_wrong_records_are_reported(tfrecord_folder, change, words, record):
    """At the ends of a file before the first batch, within it when they are read."""
    paths, index_paths = tfrecord_folder([20, 20])
    rewrite(paths[1], lambda n, values: values | change if n == record else values)
    with pytest.raises(DataError, match=f"{paths[1]}: .*{words}") as error:
        (loader,) = loaders(paths, index_paths, 1, batch_size=2, vocab_size=1000)
        assert record == 7
        numbers(loader)
    assert record != 7 or "record 7 at byte" in str(error.value)


def test_first_record_of_uneven_lengths(tfrecord_folder):
    paths, index_paths = tfrecord_folder([3])
    rewrite(paths[0], lambda n, values: values | {"segment_ids": [0] * 15})
    with pytest.raises(DataError, match="byte 0: segment_ids has 15 values, expected 16"):
        loaders(paths, index_paths, 1, batch_size=1)


def test_corrupt_data_is_reported_when_it_is_read(tfrecord_folder):
    paths, index_paths = tfrecord_folder([20, 20])
    offset, size = map(int, open(index_paths[1]).read().splitlines()[7].split())
    (loader,) = loaders(paths, index_paths, 1, batch_size=3, training=False, num_threads=2)
    with open(paths[1], "r+b") as file:
        file.seek(offset + size - 10)
        file.write(b"\0\1\2")
    with pytest.raises(
        DataError,
        match=(
            f"{paths[1]}: record 7 at byte {offset}: the record's data does not have its checksum"
        ),
    ):
        numbers(loader)
    for epoch in range(2):  # the loader itself is whole: it says so again
        with pytest.raises(DataError, match="record 7"):
            numbers(loader)


def test_wrong_options_are_reported_at_once(tfrecord_folder):
    paths, index_paths = tfrecord_folder([5])
    with pytest.raises(DataError) as error:
        DaliDataloader(
            paths,
            index_paths,
            batch_size=0,
            num_threads=0,
            prefetch=0,
            shard_id=3,
            num_shards=3,
            cuda=False,
        )
    for words in (
        "batch_size=0",
        "num_threads=0",
        "prefetch=0",
        "shard_id=3 with num_shards=3",
    ):
        assert words in str(error.value)


class StandInEvent:
    is_done = False

    def query(self):
        return self.is_done


def test_dalis_tensors_are_kept_until_they_are_copied():
    """On a GPU; here with events that are done when the test says so."""
    events, kept = [], []

    def event_behind_queue(device):
        events.append(StandInEvent())
        return events[-1]

    copies = _Copies(event_behind_queue)

    def copy_and_drop(number):
        tensors = torch.full((4,), number), torch.full((2,), number)
        found = copies.copy(tensors)
        for tensor, other in zip(tensors, found, strict=True):
            assert torch.equal(tensor, other) and tensor.data_ptr() != other.data_ptr()
        kept.append(weakref.ref(tensors[0]))

    def numbers_kept():
        return [number for number, tensor in enumerate(kept) if tensor() is not None]

    for number in range(3):
        copy_and_drop(number)
    assert numbers_kept() == [0, 1, 2]
    events[0].is_done = events[1].is_done = True
    copy_and_drop(3)
    assert numbers_kept() == [2, 3]
    events[2].is_done = events[3].is_done = True
    copy_and_drop(4)
    assert numbers_kept() == [4]


def test_arguments_of_the_wrong_kind_are_reported(tfrecord_folder):
    paths, index_paths = tfrecord_folder([5])
    for arguments, options, words in (
        ((paths[0], index_paths), {}, "expected a list of files"),
        (((path for path in paths), index_paths), {}, "tfrec_filenames=<generator"),
        (([1], index_paths), {}, "tfrec_filenames=[1]"),
        ((paths, index_paths), {"batch_size": "4"}, "batch_size='4': expected an integer"),
        ((paths, index_paths), {"batch_size": True}, "batch_size=True: expected an integer"),
        ((paths, index_paths), {"seed": 1.5}, "seed=1.5: expected an integer"),
        ((paths, index_paths), {"shuffle": "no"}, "shuffle='no': expected True or False"),
    ):
        with pytest.raises(DataError) as error:
            DaliDataloader(*arguments, **{"batch_size": 1, "cuda": False} | options)
        assert words in str(error.value)
    (loader,) = loaders(paths, index_paths, 1, batch_size=1)
    for state in ("no state", {}, loader.state_dict() | {"epoch": "1"}):
        with pytest.raises(DataError, match="not a state|expected two integers"):
            loader.load_state_dict(state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_no_gpu(tfrecord_folder):
    with pytest.raises(
        DataError, match="cuda=True with device_id=0, but torch finds 0 GPUs here; cuda=False"
    ):
        DaliDataloader(*tfrecord_folder([5]), batch_size=1)


@pytest.mark.parametrize("given", [0, 1])
def test_missing_indexes_can_be_built(tfrecord_folder, given):
    paths, index_paths = tfrecord_folder([5, 6])
    for path in index_paths[given:]:
        os.remove(path)
    options = {"batch_size": 11, "training": False, "build_missing_indexes": True}
    (loader,) = loaders(paths, index_paths[:given], 1, **options)
    assert numbers(loader) == [list(range(11))]
    assert all(map(os.path.exists, index_paths))


def test_builders_build_indexes_in_a_folder(tfrecord_folder, tmp_path):
    _, index_paths = tfrecord_folder([5, 6])
    options = {"batch_size": 2, "cuda": False, "build_missing_indexes": True}
    assert len(build_dali_train(f"{tmp_path}/part-0000[0-9]", f"{tmp_path}/idx", **options)) == 5
    assert sorted(os.listdir(tmp_path / "idx")) == [os.path.basename(path) for path in index_paths]


# --------------------------------------------------------------------------------------------------
# Threads


def test_no_thread_outlives_its_epoch(tfrecord_folder):
    before = threading.active_count()
    (loader,) = loaders(*tfrecord_folder([50]), 1, batch_size=2, num_threads=3)
    batches = iter(loader)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    numbers(loader)
    assert threading.active_count() == before


LEAVE = """
import gc, json, sys
from bert_dali_dataloader import DaliDataloader
gc.unfreeze()  # the imports of the server too: the end takes apart all
paths, indexes = json.loads(sys.argv[1])
batches = iter(DaliDataloader(paths, indexes, batch_size=2, num_threads=3, cuda=False))
next(batches)
if sys.argv[2] == "raise":
    raise KeyError
"""


@pytest.mark.parametrize("how, status", [("end", 0), ("raise", 1)])
def test_a_process_that_leaves_an_epoch_ends(tfrecord_folder, how, status):
    process = run_code(LEAVE, json.dumps(tfrecord_folder([50])), how, whole_end=True)
    assert process.returncode == status
    assert how == "raise" or process.stderr == ""
