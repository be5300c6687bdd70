"""verify_dataset.py on sets of one's own: what was cut, swapped, shuffled, lost or leaked is found,
or listed as not checked. Parts are made as create_pretraining_shards.py makes them.
"""

import json
import random
import shutil

import pytest
from conftest import DATA, ROOT
from examples_of_text import SETTINGS

import verify_dataset
from bert.examples.tfrecord import TFRecordFile, frame
from bert.generation import shards
from bert.generation.shards import Recipe, Shard

NUM_PARTS = 4
FLAGS = ["--max_seq_length=64", "--max_predictions_per_seq=10", "--dupe_factor=2", "--own_data"]
NAMES = [f"part-{number:05d}-of-{NUM_PARTS:05d}" for number in range(NUM_PARTS)]
FORMATS = ("tfrecord", "instances")


def verify(capsys, *flags):
    """Returns (exit code, JSON, all text of it that is no row that is right)."""
    code = verify_dataset.main([*map(str, flags), "--json", "--num_workers=1"])
    result = json.loads(capsys.readouterr().out)
    rows = [row for row in result["rows"] if row["status"] != "ok"]
    return code, result, json.dumps([rows, result["likely_causes"]])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with results/, tfrecord/ and instances/, manifests included."""
    folder = tmp_path_factory.mktemp("set")
    paragraphs = (DATA / "unicode.txt").read_text(encoding="utf-8").split("\n\n")
    articles = [text.strip("\n") + f"\nThis is article number {n}." for n, text in
                enumerate(paragraphs) if text.strip()]  # fmt: skip
    (folder / "results").mkdir()
    for number, name in enumerate(NAMES):
        text = "\n\n".join(articles[number::NUM_PARTS]) + "\n"
        (folder / "results" / name).write_text(text, encoding="utf-8")
    eval_articles = [f"Held out article {n}.\nNobody trains on it, number {n * n}." for n in
                     range(20)]  # fmt: skip
    (folder / "results/eval.txt").write_text("".join(text + "\n\n" for text in eval_articles))
    (folder / "results/eval.md5").write_text(
        "".join(verify_dataset.hashlib.md5(t.encode()).hexdigest() + "\n" for t in eval_articles)
    )
    for output_format in FORMATS:
        make(folder / "results", folder / output_format, output_format)
    return folder


def make(results, output, output_format="tfrecord", **changed):
    vocab = str(ROOT / "vocab.txt")
    recipe = Recipe(
        SETTINGS._replace(**changed), vocab, shards.fingerprint(vocab), output_format
    )  # fmt: skip
    for name in NAMES:
        shards.make(Shard(str(results / name), str(output / name)), recipe)


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "set")


def payloads(path):
    with TFRecordFile(str(path)) as file:
        return [file.payload(*extent) for extent in file.extents()]


def write(path, records):
    path.write_bytes(b"".join(map(frame, records)))


def swap(folder, first=1, second=2):
    a, b = folder / NAMES[first], folder / NAMES[second]
    a.rename(folder / "other")
    b.rename(a)
    (folder / "other").rename(b)


def shuffle(folder):
    records = payloads(folder / NAMES[1])
    random.Random(1).shuffle(records)
    write(folder / NAMES[1], records)


def cut(folder):
    write(folder / NAMES[1], payloads(folder / NAMES[1])[:-5])


def forget(folder):
    shutil.rmtree(folder / ".manifest")


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_whole_set(made, capsys, output_format):
    code, result, _ = verify(
        capsys, f"--results={made}/results", f"--tfrecord={made}/{output_format}", *FLAGS
    )
    assert (code, result["verdict"]) == (0, "whole")
    rows = {(row["section"], row["check"]): row["found"] for row in result["rows"]}
    assert rows["tfrecord", "as written"] == rows["tfrecord", "texts"] == "4 of 4 files"
    assert rows["results", "held out"] == "0 of 20 articles in the parts"
    assert not any("another order" in text for text in result["not_checked"])


@pytest.mark.parametrize(
    "change, words",
    [
        (swap, "it has the contents of part-00002-of-00004: swapped"),
        (shuffle, "records in another order"),
        (cut, "were written: truncated"),
        (lambda folder: (folder / NAMES[3]).unlink(), "missing: part-00003"),
    ],
)
def test_by_manifests(copy, capsys, change, words):
    change(copy / "tfrecord")
    code, _, text = verify(capsys, f"--tfrecord={copy}/tfrecord", *FLAGS)
    assert code == 1 and words in text


def test_swapped_together_with_their_manifests(copy, capsys):
    swap(copy / "tfrecord")
    manifests = copy / "tfrecord/.manifest"
    for name in NAMES[1:3]:
        (manifests / f"{name}.json").rename(manifests / name)
    (manifests / NAMES[1]).rename(manifests / f"{NAMES[2]}.json")
    (manifests / NAMES[2]).rename(manifests / f"{NAMES[1]}.json")
    code, _, text = verify(capsys, f"--tfrecord={copy}/tfrecord", *FLAGS)
    assert code == 1 and "its manifest is that of part-00002-of-00004: swapped" in text


def test_a_manifest_that_cannot_be_read(copy, capsys):
    (copy / f"tfrecord/.manifest/{NAMES[1]}.json").write_text("{")
    code, _, text = verify(capsys, f"--tfrecord={copy}/tfrecord", *FLAGS)
    assert code == 1 and f"{NAMES[1]}.json: cannot be read" in text


@pytest.mark.parametrize("change", [swap, shuffle, cut])
def test_without_manifests_it_is_listed_as_not_checked(copy, capsys, change):
    change(copy / "tfrecord")
    forget(copy / "tfrecord")
    code, result, _ = verify(capsys, f"--tfrecord={copy}/tfrecord", *FLAGS)
    assert code == 0 and "4 of 4 files: swapped, cut" in "".join(result["not_checked"])
    assert verify_dataset.main([f"--tfrecord={copy}/tfrecord", *FLAGS]) == 0
    printed = capsys.readouterr().out
    assert "\nnot checked\n  -        --tfrecord: 4 of 4" in printed
    assert "not checked, listed above" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    "change, words",
    [
        (swap, "it has the examples of part-00002-of-00004: swapped"),
        (shuffle, "its records are in another order"),
        (cut, "truncated after"),
    ],
)
def test_without_manifests_by_the_text(copy, capsys, change, words):
    forget(copy / "tfrecord")
    both = (f"--results={copy}/results", f"--tfrecord={copy}/tfrecord", *FLAGS)
    code, result, _ = verify(capsys, *both)
    assert code == 0 and not any("another order" in text for text in result["not_checked"])
    change(copy / "tfrecord")
    code, _, text = verify(capsys, *both)
    assert code == 1 and words in text
    code, result, _ = verify(capsys, *both, "--remake_parts=0")
    assert code == 0 and any("another order" in text for text in result["not_checked"])


def test_instance_files_that_were_swapped(copy, capsys):
    forget(copy / "instances")
    swap(copy / "instances")
    code, _, text = verify(
        capsys, f"--results={copy}/results", f"--tfrecord={copy}/instances", *FLAGS
    )
    assert code == 1 and "were made of part-00002-of-00004: swapped" in text


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"dupe_factor": 5}, "--dupe_factor=5"),
        ({"random_seed": 7}, "another --random_seed than 12345"),
    ],
)
def test_likely_causes_by_the_text(copy, capsys, tmp_path, changed, words):
    make(copy / "results", tmp_path / "other", **changed)
    forget(tmp_path / "other")
    both = (f"--results={copy}/results", f"--tfrecord={tmp_path}/other", *FLAGS[:-1])
    code, result, _ = verify(capsys, *both)
    assert code == 3 and words in "".join(result["likely_causes"])
    code, result, _ = verify(capsys, *both, "--own_data")
    assert code == 0 and words in "".join(result["not_checked"])


def test_likely_causes_by_manifests(made, capsys):
    code, result, _ = verify(capsys, f"--tfrecord={made}/tfrecord", *FLAGS[:-1])
    causes = "".join(result["likely_causes"])
    assert code == 3 and "--dupe_factor=2, by its own record; published: 10" in causes
    assert "no --dupe_factor" not in causes


@pytest.mark.parametrize("output_format", FORMATS)
def test_an_evaluation_set_of_training_examples(copy, capsys, output_format):
    folder = copy / output_format
    evaluation = tmp = copy / "eval"
    if output_format == "tfrecord":
        write(tmp, payloads(folder / NAMES[2])[::3])
    else:
        shutil.copy(folder / NAMES[2], tmp)
    code, _, text = verify(capsys, f"--tfrecord={folder}", f"--eval_10k={evaluation}", *FLAGS)
    assert code == 1 and f"{NAMES[2]}: has " in text and "held out" in text


def test_an_evaluation_set_that_is_held_out(copy, capsys):
    (copy / "tfrecord" / NAMES[3]).rename(copy / "eval")
    code, _, text = verify(
        capsys, f"--tfrecord={copy}/tfrecord/part-*", f"--eval_10k={copy}/eval", *FLAGS
    )
    assert code == 0, text


def test_shards_that_share_three_percent(copy, capsys):
    make(copy / "results", copy / "more", dupe_factor=10)
    forget(copy / "more")
    assert verify(capsys, f"--tfrecord={copy}/more", *FLAGS)[0] == 0
    paths = [copy / "more" / name for name in NAMES]
    one, other = payloads(paths[0]), payloads(paths[1])
    count = 3 * min(len(one), len(other)) // 100
    write(paths[1], other[:-count] + one[:count])
    code, _, text = verify(capsys, f"--tfrecord={copy}/more", *FLAGS)
    assert code == 1 and "part-00000-of-00004 and part-00001-of-00004 share about" in text


def test_an_overlap_that_is_spread_over_all_shards(copy, capsys):
    forget(copy / "tfrecord")
    records = [payloads(copy / "tfrecord" / name) for name in NAMES]
    for number, name in enumerate(NAMES):
        others = [records[other][number] for other in range(NUM_PARTS) if other != number]
        write(copy / "tfrecord" / name, records[number] + others)
    code, _, text = verify(capsys, f"--tfrecord={copy}/tfrecord", *FLAGS)
    assert code == 1 and "% of all examples are in two files" in text


# --- the text ---


def append(path, *texts):
    with open(path, "a", encoding="utf-8") as file:
        file.writelines("\n" + text for text in texts)


def test_evaluation_articles_in_the_training_text(copy, capsys):
    append(copy / "results" / NAMES[1], (copy / "results/eval.txt").read_text()[:-1])
    code, _, text = verify(capsys, f"--results={copy}/results", *FLAGS)
    assert code == 1 and f"{NAMES[1]}: has 20 articles of eval.txt" in text


def test_text_that_was_cut_between_lines(copy, capsys):
    path = copy / "results" / NAMES[1]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    code, result, _ = verify(capsys, f"--results={copy}/results", *FLAGS)
    assert code == 0 and "cut between lines" in "".join(result["not_checked"])
    for output_format in FORMATS:
        code, _, text = verify(
            capsys, f"--results={copy}/results", f"--tfrecord={copy}/{output_format}", *FLAGS
        )
        assert code == 1 and f"{NAMES[1]}: " in text and "truncated, swapped or changed" in text


def test_texts_that_share_articles(copy, capsys):
    shared = (copy / "results" / NAMES[0]).read_text().split("\n\n")[:40]
    append(copy / "results" / NAMES[1], "\n\n".join(shared) + "\n")
    code, _, text = verify(capsys, f"--results={copy}/results", *FLAGS)
    assert code == 1 and "articles in common" in text


def test_last_text_missing(copy, capsys):
    (copy / "results" / NAMES[3]).unlink()
    code, _, text = verify(capsys, f"--results={copy}/results", *FLAGS)
    assert code == 1 and "missing: part-00003 (of 4)" in text
    made = "".join(f'["results/{name}", "", []]\n' for name in NAMES[:3])
    (copy / "results/.do_gather.journal").write_text(made)
    assert verify(capsys, f"--results={copy}/results", *FLAGS)[0] == 0
    assert verify(capsys, f"--results={copy}/results", *FLAGS)[0] == 0


def test_examples_of_the_last_text_missing(copy, capsys):
    (copy / "tfrecord" / NAMES[3]).unlink()
    forget(copy / "tfrecord")
    both = (f"--results={copy}/results", f"--tfrecord={copy}/tfrecord", *FLAGS)
    code, _, text = verify(capsys, *both)
    assert code == 1 and "missing: part-00003" in text


def test_an_own_list_of_md5s_that_differs(copy, capsys):
    listed = copy / "list.md5"
    listed.write_text(f"{'0' * 32}  {NAMES[0]}\n")
    assert (
        verify_dataset.main([f"--results={copy}/results", f"--md5_list={listed}", "--own_data"])
        == 3
    )
    last = capsys.readouterr().out.splitlines()[-1]
    assert "not what --md5_list says" in last and "add --own_data" not in last
