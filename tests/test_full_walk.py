"""The commands of README.md and docs/, typed as they stand there, on a small stand-in: from
download to a trained model.

What differs from the pages is in the tables below and in tests/pages.py, and nowhere else.
"""

import bz2
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile

import pytest
import torch
from conftest import ROOT, UNICODE_TEXT
from download_server import running_server, serve_mlcommons
from pages import expanded, python_of, walk_commands
from transformers import BertConfig, BertForPreTraining

from tests.cleanup_scripts.test_cleanup_scripts import DUMP_BEGIN, DUMP_PAGE
from tests.training.test_model import tensorflow_variables, write_tensorflow_checkpoint

pytestmark = pytest.mark.slow

# {beginning of a command: what is written behind it}. {server}: the address of the local server.
# --md5 FILE=none: the stand-ins are not the published files, with whose size and MD5 they would be
# compared.
ADDED = {
    "python3 cleanup_scripts/download.py --mlperf=text,model": "--metadata_url={server}/metadata "
    "--md5=bert_config.json=none --md5=model.ckpt-28252.index=none "
    "--md5=model.ckpt-28252.meta=none --md5=model.ckpt-28252.data-00000-of-00001=none",
    "python3 cleanup_scripts/download.py --mlperf=dump": "--metadata_url={server}/metadata "
    "--md5=enwiki-20200101-pages-articles-multistream.xml.bz2=none",
    "python3 cleanup_scripts/download.py --wiki": "--base_url={server}/{{wiki}}/{{date}}",
    "python3 verify_dataset.py": "--own_data",
    "torchrun": "--bert_config_file=download/bert_config.json --train_batch_size=4 "
    "--num_train_steps=2 --device=cpu",
    "python3 train.py": "--bert_config_file=download/bert_config.json",
}
# {in a command: what stands there instead}
REPLACED = {
    "--date=YYYYMMDD": "--date=20240101",
    "--num_examples_to_pick=10000": "--num_examples_to_pick=20",
    "--nproc_per_node=8": "--nproc_per_node=1",
}
# {beginning of a command: what is run before it}, so that the other ways to make a part find one
# that is missing
BEFORE = {
    "for part in": "mkdir by_ray; mv tfrecord/part-00000-of-00500 by_ray",
    "printf": "mv tfrecord/part-00001-of-00500 by_ray",
}
ENVIRONMENT = {"NUM_TEST_ARTICLES": "2"}  # for process_wiki.sh, which holds out 10,000 by default


def beginning_of(command, table):
    return next((beginning for beginning in table if command.startswith(beginning)), None)


def script_of(commands, server):
    """The commands as a script, with what the tables say; every entry of the tables must have been
    of use.
    """
    lines, used = ["set -euo pipefail"], set()
    for command in commands:
        if beginning := beginning_of(command, BEFORE):
            used.add(beginning)
            lines.append(BEFORE[beginning])
        if beginning := beginning_of(command, ADDED):
            used.add(beginning)
            command += " " + ADDED[beginning].format(server=server)
        for old in REPLACED:
            if old in command:
                used.add(old)
                command = command.replace(old, REPLACED[old])
        lines.append(command)
    assert used == {*BEFORE, *ADDED, *REPLACED}
    return "\n".join(lines)


# the stand-ins


def text_files():
    """Two parts and held-out articles, as MLPerf's text has them."""
    articles = [article for article in UNICODE_TEXT.read_text().split("\n\n") if article.strip()]
    articles = [article.strip("\n") for article in articles]
    third = len(articles) // 3
    whole = [
        "".join(f"{article}\n\n" for article in articles[i * third : (i + 1) * third])
        for i in range(3)
    ]
    md5s = [
        hashlib.md5(article.encode()).hexdigest() + "\n"
        for article in articles[2 * third : 3 * third]
    ]
    files = {
        "part-00000-of-00500": whole[0],
        "part-00001-of-00500": whole[1],
        "eval.txt": whole[2],
        "eval.md5": "\n".join(md5s),
    }
    return {name: text.encode() for name, text in files.items()}


def packed(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"results4/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def dump_file():
    page = DUMP_PAGE.replace("It stays.", "It stays. It is one of many.")
    pages = map(page.format, range(1, 12))
    return bz2.compress((DUMP_BEGIN + "".join(pages) + "</mediawiki>\n").encode())


def model_files(folder):
    """A tiny BERT as a TensorFlow checkpoint, its configuration, and the true vocabulary."""
    config = json.loads((ROOT / "configs/bert_tiny.json").read_text()) | {
        "hidden_size": 32,
        "intermediate_size": 64,
    }
    torch.manual_seed(0)
    arrays = tensorflow_variables(BertForPreTraining(BertConfig(**config)))
    write_tensorflow_checkpoint(folder / "model.ckpt-28252", arrays)
    files = {
        f"tf1_ckpt/{path.name}": path.read_bytes() for path in folder.glob("model.ckpt-28252.*")
    }
    return files | {
        "tf1_ckpt/model.ckpt-28252.meta": b"the graph, which nothing here reads",
        "bert_config.json": json.dumps(config).encode(),
        "vocab.txt": (ROOT / "vocab.txt").read_bytes(),
    }


@pytest.fixture
def server(tmp_path_factory):
    """MLCommons' storage and Wikimedia's, small."""
    dump, text = dump_file(), text_files()
    with running_server() as server:
        listed = "".join(
            f"{hashlib.md5(data).hexdigest()}  ./{name}\n" for name, data in text.items()
        )
        archives = {
            "results_text.tar.gz": packed(text),
            "bert_reference_results_text_md5.txt": listed.encode(),
        }
        serve_mlcommons(server, "bert-preprocessed-wikipedia-dataset", archives)
        inputs = model_files(tmp_path_factory.mktemp("model")) | {
            "enwiki-20200101-pages-articles-multistream.xml.bz2": dump
        }
        serve_mlcommons(server, "bert-input-files", inputs)
        name = "enwiki-20240101-pages-articles-multistream.xml.bz2"
        server.files[f"/enwiki/20240101/{name}"] = dump
        md5s = f"{hashlib.md5(dump).hexdigest()}  {name}\n"
        server.files["/enwiki/20240101/enwiki-20240101-md5sums.txt"] = md5s.encode()
        yield server


@pytest.fixture
def project(tmp_path):
    """A folder that has the project's scripts by links, so that what the walk writes stays out of
    the project.
    """
    for path in (
        *ROOT.glob("*.py"),
        ROOT / "vocab.txt",
        ROOT / "configs",
        ROOT / "cleanup_scripts",
    ):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_the_walk(server, project):
    commands = walk_commands()
    script = script_of(commands, server.url)
    script += f"\npython3 - << 'END'\n{python_of('docs/training.md')}\nEND\n"
    environment = (
        os.environ
        | ENVIRONMENT
        | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    )
    process = subprocess.run(
        ["bash", "-c", script],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-8000:]
    assert "download/results4: unpacked, 4 files" in process.stdout

    next_commands = re.findall(r"^next: (.*?)(?:   #.*)?$", process.stdout, re.MULTILINE)
    known = expanded(commands)
    assert len(next_commands) == 6
    for command in next_commands:
        assert command.replace("20240101", "20200101").split() in known

    for part in ("part-00000-of-00500", "part-00001-of-00500"):  # by Ray, and without it
        assert (project / "by_ray" / part).read_bytes() == (
            project / "tfrecord" / part
        ).read_bytes()
    rows = [
        json.loads(line) for line in (project / "runs/large/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    for model in ("runs/large/model", "runs/large/export", "runs/scratch/model"):
        assert (project / model / "config.json").is_file()
