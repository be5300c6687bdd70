"""Instance files in the loader: bit for bit what it gives for the TFRecord files of the same
texts.
"""

import os
import shutil

import numpy as np
import pytest
from conftest import UNICODE_TEXT
from examples_of_text import make_examples

from bert.common.files import DataError
from bert.examples.instance_file import InstanceFile
from bert_dali_dataloader import DaliDataloader, build_dali_eval, build_dali_train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(TFRecord files, instance files): three of 40 to 400 examples."""
    folder, pairs = tmp_path_factory.mktemp("data"), []
    articles = UNICODE_TEXT.read_text().split("\n\n")
    for number, count in enumerate((4, 40, 12)):
        text = folder / f"text-{number}"
        text.write_text("\n\n".join(articles[:count]))
        (pair,) = zip(*make_examples(folder, [f"part-{number}"], text, dupe_factor=1 + number))
        pairs.append(pair)
    return tuple(map(list, zip(*pairs)))


def loader(paths, **options):
    options = {"batch_size": 8, "num_threads": 2, "cuda": False} | options
    is_tfrecord = "tfrecord" in paths[0]
    return DaliDataloader(paths, [], build_missing_indexes=is_tfrecord, **options)


def copies(batches):
    return [{name: values.numpy().copy() for name, values in batch.items()} for batch in batches]


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        for name, values in batch.items():
            assert values.dtype == other[name].dtype and np.array_equal(values, other[name]), name


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_same_batches_and_states(data, num_shards, training, shuffle):
    for shard_id in range(num_shards):
        records, instances = (
            loader(paths, shard_id=shard_id, num_shards=num_shards, training=training,
                   shuffle=shuffle)
            for paths in data
        )  # fmt: skip
        assert len(records) == len(instances) > 3
        assert records.num_records == instances.num_records
        assert records.files == instances.files
        for name, values in records.first_example.items():
            assert np.array_equal(values, instances.first_example[name])
        for _ in range(2):  # epochs
            assert_equal(copies(records), copies(instances))
            assert records.state_dict() == instances.state_dict()


def test_resume_on_the_other_format(data):
    expected = loader(data[0])
    first_epoch, second_epoch = copies(expected), copies(expected)
    for paths, others in (data, data[::-1]):
        begun, resumed = loader(paths), loader(others)
        some = []
        for batch in begun:
            some += copies([batch])
            if len(some) == 5:
                break
        resumed.load_state_dict(begun.state_dict())
        assert_equal(some + copies(resumed), first_epoch)
        assert_equal(copies(resumed), second_epoch)


def test_records_between_names_the_same_places(data):
    records, instances = map(loader, data)
    assert records.records_between((0, 3), (1, 20)) == instances.records_between((0, 3), (1, 20))


def test_patterns_need_no_index(data):
    folder = os.path.dirname(data[1][0])
    train = build_dali_train(folder, batch_size=8, cuda=False)
    evaluation = build_dali_eval(f"{folder}/part-*", None, batch_size=8, cuda=False)
    assert_equal(copies(train), copies(loader(data[1])))
    assert sum(len(batch["input_ids"]) for batch in evaluation) == train.num_records


# --------------------------------------------------------------------------------------------------
# balance


@pytest.mark.parametrize("num_shards", [1, 2, 3, 8])
@pytest.mark.parametrize("training", [True, False])
def test_balanced_ranks_have_the_same_global_batches(data, num_shards, training):
    """Every record once, in the global batch that it is in without balance."""
    options = {"num_shards": num_shards, "training": training, "batch_size": 6}
    plain, balanced = (
        [
            copies(loader(data[1], shard_id=rank, balance=balance, **options))
            for rank in range(num_shards)
        ]
        for balance in (False, True)
    )
    for step, ranks in enumerate(zip(*plain, strict=True)):
        others = [batches[step] for batches in balanced]
        assert [len(b["input_ids"]) for b in ranks] == [len(b["input_ids"]) for b in others]
        for name in ranks[0]:
            rows, other_rows = (
                sorted(map(tuple, np.concatenate([batch[name] for batch in batches]).tolist()))
                for batches in (ranks, others)
            )
            assert rows == other_rows
    assert all(len(batches) == len(plain[0]) for batches in balanced)


def test_balanced_ranks_have_about_the_same_number_of_tokens(data):
    def spread(balance):
        """Tokens of the fullest rank, divided by the mean; the mean of all steps."""
        ranks = [
            [
                int(batch["input_mask"].sum())
                for batch in loader(data[1], shard_id=rank, num_shards=4, balance=balance)
            ]
            for rank in range(4)
        ]
        tokens = np.array(ranks)
        return (tokens.max(0) / tokens.mean(0)).mean()

    assert spread(True) < 1 + (spread(False) - 1) / 3


def test_balanced_epoch_resumes(data):
    options = {"shard_id": 1, "num_shards": 3, "balance": True}
    whole = copies(loader(data[1], **options))
    begun, resumed = loader(data[1], **options), loader(data[1], **options)
    for number, _ in enumerate(begun, start=1):
        if number == 4:
            break
    resumed.load_state_dict(begun.state_dict())
    assert_equal(copies(resumed), whole[4:])


def test_tfrecords_cannot_be_balanced(data):
    with pytest.raises(DataError, match="balance=True .* make instance files"):
        loader(data[0], balance=True)


# --------------------------------------------------------------------------------------------------
# Files that do not belong together


def test_mixed_formats(data):
    with pytest.raises(DataError) as error:
        loader([data[1][0], data[0][1]])
    for word in (data[1][0], data[0][1], "TFRecord files and instance files in one data set"):
        assert word in str(error.value)


def test_index_of_instance_files(data):
    with pytest.raises(DataError, match=f"{data[1][0]} is an instance file, which needs none"):
        DaliDataloader(data[1], ["a.idx"], batch_size=8, cuda=False)


def test_other_lengths(data, tmp_path):
    _, (other,) = make_examples(tmp_path, ["other"], max_seq_length=32, max_predictions_per_seq=5)
    with pytest.raises(DataError) as error:
        loader([*data[1], other])
    assert f"{other}: examples of 32 tokens, expected 64" in str(error.value)
    assert f"{other}: examples of 5 predictions, expected 10" in str(error.value)


def test_vocabulary_larger_than_the_model(data):
    with pytest.raises(DataError) as error:
        loader(data[1], vocab_size=1000)
    for path in data[1]:
        assert f"{path}: made with a vocabulary of 30,522 tokens, expected at most" in str(
            error.value
        )


def test_other_vocabulary_than_its_neighbours(data, tmp_path):
    copy = shutil.copy(data[1][1], tmp_path / "part-9")
    with open(copy, "rb") as file:
        content = file.read()
    vocabulary = InstanceFile(copy).header.vocabulary.encode()
    with open(copy, "wb") as file:
        file.write(content.replace(vocabulary, b"00000000"))
    with pytest.raises(DataError, match=f"{copy}: made with another vocabulary than {data[1][0]}"):
        loader([data[1][0], str(copy)])


def test_all_that_is_wrong_is_reported_at_once(data, tmp_path):
    short, corrupt = (shutil.copy(data[1][1], tmp_path / name) for name in ("short", "corrupt"))
    os.truncate(short, 1000)
    with pytest.raises(DataError) as error:
        loader([str(short), data[1][0], f"{tmp_path}/corrupt", f"{short}"])
    assert str(error.value).count(f"{short}: 1,000 bytes") == 2
    with open(corrupt, "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\1\2\3\4")
    with pytest.raises(DataError, match=f"{corrupt}: the file does not have its checksum"):
        loader([data[1][0], str(corrupt)])


@pytest.mark.parametrize("num_shards", [2, 3])
def test_ranks_share_the_work_of_checking(data, tmp_path, num_shards):
    corrupt = shutil.copy(data[1][2], tmp_path / "corrupt")
    with open(corrupt, "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\1\2\3\4")
    paths, failed = [*data[1][:2], str(corrupt)], []
    for rank in range(num_shards):
        try:
            loader(paths, shard_id=rank, num_shards=num_shards)
        except DataError:
            failed.append(rank)
    assert failed == [2 % num_shards]


def test_file_that_shrinks_while_it_is_read(data, tmp_path):
    copy = str(shutil.copy(data[1][1], tmp_path / "part"))
    own = loader([copy], shuffle=False)
    next(iter(own))
    os.truncate(copy, 1000)
    with pytest.raises(DataError, match=f"{copy}: the file changed while it was read"):
        copies(own)


def test_instance_that_no_checksum_guards(data, tmp_path):
    """Of a file that another rank checks: an error with file and record, and no crash."""
    copy = str(shutil.copy(data[1][1], tmp_path / "part"))
    instances = InstanceFile(copy).instances
    with open(copy, "rb") as file:
        start = file.read().index(instances.rows.tobytes())
    with open(copy, "r+b") as file:
        file.seek(start + 7 * 32)
        file.write(b"\xff" * 32 * 3)
    own = loader([data[1][0], copy, data[1][2]], num_shards=3, shuffle=False)
    with pytest.raises(DataError, match=f"{copy}: record [789]: not a possible instance"):
        copies(own)
