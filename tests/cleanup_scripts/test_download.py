"""cleanup_scripts/download.py against a local server that misbehaves in every way a server can."""

import errno
import fcntl
import gzip
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import urllib.request

import pytest
from conftest import ROOT
from download_server import running_server, serve_mlcommons

SCRIPTS = ROOT / "cleanup_scripts"
sys.path.insert(0, str(SCRIPTS))

import download
import mlcommons
import mlperf_files
import unpack_text
from resumable_download import fetch

from bert.common.files import DataError
from bert.common.md5_list import parse_md5_list
from tests.script_server import script_server

DATA = bytes(range(256)) * 4000  # 1,024,000 bytes
MD5 = hashlib.md5(DATA).hexdigest()
QUICK = {"retries": 3, "first_wait": 0.01, "timeout": 600.0}


@pytest.fixture
def server():
    with running_server() as server:
        server.files["/data.bin"] = DATA
        yield server


def names(folder):
    return sorted(os.listdir(folder))


def test_downloads_and_checks(server, tmp_path):
    path = tmp_path / "made/data.bin"
    assert fetch(server.url + "/data.bin", path, len(DATA), MD5, **QUICK) == MD5
    assert path.read_bytes() == DATA
    assert names(tmp_path / "made") == ["data.bin"]


def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path):
    server.faults = ["cut", "cut", "cut"]
    fetch(server.url + "/data.bin", tmp_path / "data.bin", len(DATA), MD5, **QUICK)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    ranges = [wanted for _, wanted in server.requests]
    assert ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_new_process_resumes_where_the_last_one_stopped(server, tmp_path):
    server.faults = ["cut"]
    with pytest.raises(DataError, match="300,000 bytes are kept: run the same command again"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **(QUICK | {"retries": 0}))
    assert names(tmp_path) == [".data.bin.part", ".data.bin.part.json"]
    fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert server.requests[-1] == ("/data.bin", "bytes=300000-")
    assert (tmp_path / "data.bin").read_bytes() == DATA and names(tmp_path) == ["data.bin"]


def test_a_changed_file_is_not_glued_to_the_old_beginning(server, tmp_path):
    server.faults = ["cut"]
    with pytest.raises(DataError):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **(QUICK | {"retries": 0}))
    server.etag, server.files["/data.bin"] = '"v2"', DATA[::-1]
    fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert (tmp_path / "data.bin").read_bytes() == DATA[::-1]


@pytest.mark.parametrize("etag", ['W/"weak"', None])
def test_without_a_validator_only_an_md5_allows_resuming(server, tmp_path, etag):
    server.etag = etag
    for md5, expected in ((None, [None, None]), (MD5, [None, "bytes=300000-"])):
        server.faults, server.requests[:] = ["cut"], []
        fetch(server.url + "/data.bin", tmp_path / "data.bin", md5=md5, **QUICK)
        assert [wanted for _, wanted in server.requests] == expected
        assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_server_that_ignores_ranges_starts_from_the_beginning(server, tmp_path):
    server.faults, server.knows_ranges = ["cut"], False
    fetch(server.url + "/data.bin", tmp_path / "data.bin", len(DATA), MD5, **QUICK)
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_server_that_sends_another_range_is_not_believed(server, tmp_path):
    server.faults = ["cut", "other range"]
    fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_all_bytes_there_but_not_yet_checked(server, tmp_path):
    server.faults = ["cut"]
    with pytest.raises(DataError):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **(QUICK | {"retries": 0}))
    (tmp_path / ".data.bin.part").write_bytes(DATA)
    fetch(server.url + "/data.bin", tmp_path / "data.bin", md5=MD5, **QUICK)
    assert server.requests[-1] == ("/data.bin", f"bytes={len(DATA)}-")  # answered 416
    assert (tmp_path / "data.bin").read_bytes() == DATA


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_error_is_tried_again(server, tmp_path, status):
    server.faults = [status, status]
    fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert (tmp_path / "data.bin").read_bytes() == DATA and len(server.requests) == 3


def test_gives_up_after_the_last_retry(server, tmp_path):
    server.faults = [500] * 9
    with pytest.raises(DataError, match="answers 500 .*; failed 4 times in a row"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert len(server.requests) == 4 and names(tmp_path) == []


def test_waits_longer_each_time(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("resumable_download.time.sleep", waits.append)
    server.faults = [500] * 9
    fetch(server.url + "/data.bin", tmp_path / "data.bin", retries=9, first_wait=1.0)
    longest = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))


def test_a_stalled_connection_is_tried_again(server, tmp_path, monkeypatch):
    """Only the first connection waits for a moment; the others have ten minutes, as is asked for,
    on a machine that may be busy.
    """
    server.faults, server.files["/data.bin"] = ["stall"], DATA[:1000]
    server.tells_length = False
    timeouts, urlopen = [], urllib.request.urlopen

    def open_with_little_patience(request, timeout):
        timeouts.append(timeout)
        response = urlopen(request, timeout=timeout)
        if len(timeouts) == 1:
            response.fp.raw._sock.settimeout(0.1)
        return response

    monkeypatch.setattr("urllib.request.urlopen", open_with_little_patience)
    fetch(
        server.url + "/data.bin",
        tmp_path / "data.bin",
        md5=hashlib.md5(DATA[:1000]).hexdigest(),
        **QUICK,
    )
    assert len(server.requests) == 2 and timeouts == [QUICK["timeout"]] * 2
    assert (tmp_path / "data.bin").read_bytes() == DATA[:1000]


def test_no_server_is_a_clear_error(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match="cannot be reached .*Connection refused.*proxy"):
        fetch(
            f"http://127.0.0.1:{port}/data.bin", tmp_path / "data.bin", **(QUICK | {"retries": 1})
        )
    assert names(tmp_path) == []


def test_wrong_bytes_never_get_the_name(server, tmp_path):
    server.files["/data.bin"] = DATA[:-1] + b"x"
    with pytest.raises(
        DataError,
        match=f"received file has the MD5 .*, expected {MD5}; it was removed. Run the same",
    ):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", len(DATA), MD5, **QUICK)
    assert names(tmp_path) == []


def test_a_wrong_size_is_reported_before_the_transfer(server, tmp_path):
    with pytest.raises(DataError, match="has 1,024,000 bytes, expected 17: it is another file"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", 17, MD5, **QUICK)
    assert names(tmp_path) == []


def test_neither_size_nor_md5_would_hide_a_cut(server, tmp_path):
    server.tells_length = False
    with pytest.raises(DataError, match="so an incomplete download would not be noticed"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)


@pytest.mark.parametrize("fault", ["html", "disguised html"])
def test_a_web_page_is_not_data(server, tmp_path, fault):
    server.faults = [fault]
    with pytest.raises(DataError, match="sent a web page instead of data.bin.* in a browser"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert names(tmp_path) == [] and len(server.requests) == 1


def test_a_git_lfs_pointer_is_not_data(server, tmp_path):
    server.files["/data.bin"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    with pytest.raises(DataError, match="a Git LFS pointer"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)


def test_a_missing_file_is_reported_at_once(server, tmp_path):
    with pytest.raises(DataError, match=r"no such file on the server \(404\). Look elsewhere."):
        fetch(
            server.url + "/other.bin", tmp_path / "other.bin", if_missing="Look elsewhere.", **QUICK
        )
    assert len(server.requests) == 1 and names(tmp_path) == []


def test_two_downloads_do_not_write_one_file(server, tmp_path):
    with open(tmp_path / ".data.bin.part", "ab") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is downloading it"):
            fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)


def test_a_full_disk_is_reported_before_the_transfer(server, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr("resumable_download.shutil.disk_usage", lambda _: free)
    with pytest.raises(DataError, match="10 bytes free, 1,024,000 more are needed"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------ the command


def run(*flags, folder):
    """download.py with the standard library alone: -S leaves out all packages."""
    server = script_server("http.client", "ssl", "tarfile", python_flags=("-S", "-E"))
    retries = ["--first_wait=0.01", "--retries=2"]
    return server.run(SCRIPTS / "download.py", *flags, *retries, cwd=folder)


def serve_dump(server, listed=MD5):
    server.files["/testwiki/20240101/testwiki-20240101-pages-articles-multistream.xml.bz2"] = DATA
    lines = (
        f"{'0' * 32}  testwiki-20240101-other.gz\n"
        f"{listed}  testwiki-20240101-pages-articles-multistream.xml.bz2\n"
    )
    server.files["/testwiki/20240101/testwiki-20240101-md5sums.txt"] = lines.encode()
    return ["--wiki=testwiki", "--date=20240101", f"--base_url={server.url}/{{wiki}}/{{date}}"]


def test_a_dump_is_checked_by_its_own_list(server, tmp_path):
    flags = serve_dump(server)
    server.faults = [None, "cut", 500]
    result = run(*flags, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    path = "download/testwiki-20240101-pages-articles-multistream.xml.bz2"
    assert (tmp_path / path).read_bytes() == DATA
    assert f"{path}: downloaded, 1,024,000 bytes, MD5 {MD5} (as expected)" in result.stdout
    assert f"cleanup_scripts/process_wiki.sh {path} wiki" in result.stdout
    again = run(*flags, folder=tmp_path)
    assert again.returncode == 0 and f"{path}: already downloaded, 1,024,000 bytes" in again.stdout
    (tmp_path / path).write_bytes(b"corrupt")
    corrupt = run(*flags, folder=tmp_path)
    assert corrupt.returncode == 1 and f"remove it and run again: rm {path}" in corrupt.stderr


def test_a_dump_with_a_wrong_md5(server, tmp_path):
    result = run(*serve_dump(server, listed="ab" * 16), folder=tmp_path)
    assert result.returncode == 1 and f"expected {'ab' * 16}; it was removed" in result.stderr
    assert names(tmp_path / "download") == ["testwiki-20240101-md5sums.txt"]


def test_a_dump_that_is_gone(server, tmp_path):
    result = run("--date=20200201", f"--base_url={server.url}/{{wiki}}/{{date}}", folder=tmp_path)
    assert result.returncode == 1
    assert re.search(
        r"enwiki-20200201-md5sums.txt: no such file .* Wikimedia removes old dumps: .*archive\.org",
        result.stderr,
    )
    assert names(tmp_path / "download") == []


def test_an_unfinished_dump(server, tmp_path):
    result = run(*serve_dump(server), "--file=pages-articles.xml.bz2", folder=tmp_path)
    assert result.returncode == 1
    assert (
        "lists 2 files, but no testwiki-20240101-pages-articles.xml.bz2: the dump is not finished"
        in result.stderr
    )


def test_mlperfs_dump_is_compared_with_mlperfs_size(server, tmp_path):
    name = "enwiki-20200101-pages-articles-multistream.xml.bz2"
    server.files[f"/{name}"] = DATA
    result = run("--date=20200101", f"--base_url={server.url}", folder=tmp_path)
    assert (
        result.returncode == 1
        and "1,024,000 bytes, expected 17,751,214,669: it is another file" in result.stderr
    )
    assert [path for path, _ in server.requests] == [f"/{name}"]


def test_all_problems_with_flags_are_reported_at_once(tmp_path):
    flags = [
        "--date=latest",
        "--mlperf=all",
        "--url=x",
        "--md5=vocab.txt=12",
        "--base_url=ftp://x",
        "--source=cd",
        "--timeout=0",
    ]
    result = run(*flags, folder=tmp_path)
    assert result.returncode == 2 and names(tmp_path) == []
    for word in (
        "--date 'latest'",
        "--mlperf all",
        "--url 'x'",
        "--md5 vocab.txt=12",
        "ftp://x",
        "--source cd",
        "--timeout",
    ):
        assert word in result.stderr, word
    assert "nothing to download" in run(folder=tmp_path).stderr


def test_list_shows_what_is_known(tmp_path):
    result = run("--list", folder=tmp_path)
    assert result.returncode == 0
    for file in mlperf_files.PUBLISHED:
        assert re.search(
            rf"{re.escape(file.name)} .*{file.md5 or 'MD5 not published'}\n.*{file.drive_id}",
            result.stdout,
        )


def test_runs_with_the_standard_library_alone(tmp_path):
    imports = [sys.executable, "-S", "-E", "-c", "import {}"]
    for package in ("bert", "nltk"):
        command = [word.format(package) for word in imports]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1
    result = run("--list", folder=tmp_path)
    assert result.returncode == 0 and "results_text.tar.gz" in result.stdout


# --------------------------------------------------------------------------------- MLPerf's files

PARTS = {
    "part-00000-of-00500": b"One.\n\n",
    "part-00001-of-00500": b"Two.\n\n",
    "eval.txt": b"Three.\n",
    "eval.md5": b"0\n",
}
LOOSE = {f"results4/{name}": data for name, data in PARTS.items()}
TEXT, INPUTS = "bert-preprocessed-wikipedia-dataset", "bert-input-files"
CONFIG, DUMP = b'{"vocab_size": 10}', "enwiki-20200101-pages-articles-multistream.xml.bz2"
INPUT_FILES = {
    f"tf1_ckpt/model.ckpt-28252.{end}": end.encode()
    for end in ("data-00000-of-00001", "index", "meta")
} | {
    "tf2_ckpt/model.ckpt-28252.index": b"TensorFlow 2",
    "bert_config.json": CONFIG,
    "vocab.txt": b"[PAD]\n",
    "License.txt": b"licence",
    DUMP: DATA,
    DUMP + ".md5sum": b"sum",
}
PUBLISHED_OTHERWISE = (
    "bert_config.json",
    "vocab.txt",
    *(f"tf1_ckpt/model.ckpt-28252.{end}" for end in ("data-00000-of-00001", "index", "meta")),
)
AS_LISTED = [f"--md5={name}=none" for name in PUBLISHED_OTHERWISE]
COMMAND = (
    "bash <(curl -s https://raw.githubusercontent.com/mlcommons/r2-downloader/refs/heads/main/"
    f"mlc-r2-downloader.sh) -d download/{TEXT}"
)


def archive(files, **changes):
    """A .tar.gz of {path: bytes}; changes: attributes of its members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            for name, value in changes.items():
                setattr(member, name, value)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def files_below(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_text_as_files(server, tmp_path):
    metadata = serve_mlcommons(server, TEXT, LOOSE)
    result = run("--mlperf=text", f"--metadata_url={metadata}", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    listed = "".join(f"{hashlib.md5(PARTS[name]).hexdigest()}  {name}\n" for name in sorted(PARTS))
    assert files_below(tmp_path / "download") == LOOSE | {"results4.md5": listed.encode()}
    for command in (
        "verify_dataset.py --results=download/results4 --md5_list=download/results4.md5\n",
        "create_pretraining_shards.py --input_dir=download/results4 --output_dir=tfrecord ",
    ):
        assert f"next: python3 {command}" in result.stdout


@pytest.mark.parametrize("path", ["./{}", "results/{}"])
def test_text_in_another_folder_gets_the_same_place(server, tmp_path, path):
    files = {path.format(name).removeprefix("./"): data for name, data in PARTS.items()}
    others = {"notes.txt": b"notes", "docs/License.txt": b"licence"}
    metadata = serve_mlcommons(server, TEXT, files | others)
    assert run("--mlperf=text", f"--metadata_url={metadata}", folder=tmp_path).returncode == 0
    found = files_below(tmp_path / "download")
    assert found.items() >= LOOSE.items()
    assert found.keys() - LOOSE.keys() == {"results4.md5", "results4.License.txt"}


def serve_archive(server, others=None):
    md5s = "".join(f"{hashlib.md5(data).hexdigest()}  ./{name}\n" for name, data in PARTS.items())
    files = {
        "results_text.tar.gz": archive(LOOSE),
        "bert_reference_results_text_md5.txt": md5s.encode(),
    }
    return serve_mlcommons(server, TEXT, files | (others or {}))


def test_text_as_an_archive_is_unpacked_once(server, tmp_path):
    flags = ["--mlperf=text", f"--metadata_url={serve_archive(server)}"]
    (tmp_path / "download/.results4.unpacking").mkdir(
        parents=True
    )  # left by a call that was killed
    result = run(*flags, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (
        "download/results4: unpacked, 4 files" in result.stdout
        and "--md5_list=download/results4.md5" in result.stdout
    )
    found = files_below(tmp_path / "download")
    assert found.items() >= LOOSE.items() and not os.path.exists(
        tmp_path / "download/.results4.unpacking"
    )
    assert len(found["results4.md5"].splitlines()) == 4
    again = run(*flags, folder=tmp_path)
    assert again.returncode == 0 and "download/results4: already unpacked" in again.stdout
    (tmp_path / "download/results4/eval.txt").write_bytes(b"edited")
    changed = run(*flags, folder=tmp_path)
    assert (
        changed.returncode == 1 and "eval.txt has changed since it was unpacked" in changed.stderr
    )
    assert (tmp_path / "download/results4/eval.txt").read_bytes() == b"edited"


def test_only_one_archive_is_downloaded(server, tmp_path):
    others = {name: b"not read" for name in ("results_text.zip", "results_text.tar", "eval.txt")}
    flags = ["--mlperf=text", f"--metadata_url={serve_archive(server, others)}"]
    result = run(*flags, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not [path for path, _ in server.requests if os.path.basename(path) in others]


def test_the_archive_is_decompressed_once_and_announced(tmp_path, monkeypatch, capsys):
    """Large parts, so that going back by a byte would not be served from a buffer."""
    path, blocks = tmp_path / "text.tar.gz", []
    parts = {f"results4/part-{i:05d}-of-00500": os.urandom(1 << 17) for i in range(3)}
    path.write_bytes(archive(parts))
    decompress = gzip._GzipReader.read
    monkeypatch.setattr(
        gzip._GzipReader,
        "read",
        lambda self, size=-1: blocks.append(decompress(self, size)) or blocks[-1],
    )
    unpack_text.unpack_text(str(path), str(tmp_path / "results4"), "md5")
    assert len(b"".join(blocks)) < 2 * sum(map(len, parts.values()))
    assert files_below(tmp_path).items() >= parts.items()
    assert capsys.readouterr().out.startswith(f"{path}: unpacking to {tmp_path}/results4 ...")


def test_an_archive_with_a_wrong_checksum_leaves_nothing(tmp_path):
    path, packed = tmp_path / "text.tar.gz", bytearray(archive(LOOSE))
    packed[-8] ^= 1  # the CRC of gzip
    path.write_bytes(packed)
    with pytest.raises(DataError, match="corrupt, or not an archive .*CRC"):
        unpack_text.unpack_text(str(path), str(tmp_path / "results4"), "md5")
    assert names(tmp_path) == ["text.tar.gz"]


def test_the_lock_is_on_a_file_open_for_writing(tmp_path, monkeypatch):
    """NFS locks no other."""
    path, modes = tmp_path / "text.tar.gz", []
    path.write_bytes(archive(LOOSE))
    monkeypatch.setattr(
        "bert.common.files.fcntl.flock", lambda file, _: modes.append(file.writable())
    )
    unpack_text.unpack_text(str(path), str(tmp_path / "results4"), "md5")
    assert modes and all(modes)


def test_paths_in_advice_are_quoted(server, tmp_path):
    folder = tmp_path / "my data"
    flags = ["--mlperf=text", "--out_dir=my data", f"--metadata_url={serve_archive(server)}"]
    assert run(*flags, folder=tmp_path).returncode == 0
    (folder / "results4/eval.txt").write_bytes(b"edited")
    assert "run again: rm -r 'my data/results4'" in run(*flags, folder=tmp_path).stderr
    (folder / "results_text.tar.gz").write_bytes(b"corrupt")
    changed = run(*flags, folder=tmp_path)
    assert "run again: rm 'my data/results_text.tar.gz'" in changed.stderr
    unchecked = run(*flags, "--md5=results_text.tar.gz=none", folder=tmp_path)
    assert "rm -r 'my data/results4'" in unchecked.stderr


def test_a_folder_that_was_not_unpacked_here_is_left_alone(server, tmp_path):
    (tmp_path / "download/results4").mkdir(parents=True)
    result = run("--mlperf=text", f"--metadata_url={serve_archive(server)}", folder=tmp_path)
    assert (
        result.returncode == 1
        and "download/results4: exists, but was not unpacked by this script" in result.stderr
    )
    assert names(tmp_path / "download/results4") == []


@pytest.mark.parametrize(
    "packed, message",
    [
        (archive({"../part-00000-of-00500": b"x"}), "leads out of the folder"),
        (archive({"/part-00000-of-00500": b"x"}), "leads out of the folder"),
        (
            archive({"part-00000-of-00500": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            "is a link or a device",
        ),
        (archive({"notes.txt": b"x"}), "one folder with part-00000-of-00500 ..., found none"),
        (archive({"a/part-00000-of-00500": b"x", "b/eval.txt": b"x"}), "found a and b"),
        (archive(LOOSE)[:-20], "corrupt, or not an archive"),
        (b"no archive", "corrupt, or not an archive"),
    ],
)
def test_a_bad_archive_leaves_nothing(server, tmp_path, packed, message):
    metadata = serve_mlcommons(server, TEXT, {"results_text.tar.gz": packed})
    result = run("--mlperf=text", f"--metadata_url={metadata}", folder=tmp_path)
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
    assert names(tmp_path) == ["download"] and names(tmp_path / "download") == [
        "results_text.tar.gz"
    ]


def test_unpacking_that_is_interrupted_or_has_no_room(tmp_path, monkeypatch):
    path, folder = tmp_path / "text.tar.gz", tmp_path / "results4"
    path.write_bytes(archive(LOOSE))
    with monkeypatch.context() as patch:
        patch.setattr("unpack_text.shutil.disk_usage", lambda _: type("Usage", (), {"free": 3}))
        with pytest.raises(DataError, match="disk full: 3 bytes free, .* needs about"):
            unpack_text.unpack_text(str(path), str(folder), "md5")
    assert names(tmp_path) == ["text.tar.gz"]
    with monkeypatch.context() as patch:
        no_space = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr("unpack_text.os.fsync", lambda _: (_ for _ in ()).throw(no_space))
        with pytest.raises(DataError, match="disk full: .* needs about [1-9]"):
            unpack_text.unpack_text(str(path), str(folder), "md5")
    assert names(tmp_path) == ["text.tar.gz"]
    with monkeypatch.context() as patch:
        patch.setattr("unpack_text.os.rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            unpack_text.unpack_text(str(path), str(folder), "md5")
    assert names(tmp_path) == ["text.tar.gz"]
    assert unpack_text.unpack_text(str(path), str(folder), "md5") == "unpacked, 4 files"
    with pytest.raises(DataError, match="unpacked from another archive"):
        unpack_text.unpack_text(str(path), str(folder), "other md5")


def test_model_and_dump(server, tmp_path):
    metadata = serve_mlcommons(server, INPUTS, INPUT_FILES)
    flags = ["--mlperf=model,dump", f"--metadata_url={metadata}", *AS_LISTED, f"--md5={DUMP}={MD5}"]
    result = run(*flags, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files_below(tmp_path / "download") == {
        name: data
        for name, data in INPUT_FILES.items()
        if name != "License.txt" and not name.startswith("tf2")
    }
    assert f"next: cleanup_scripts/process_wiki.sh download/{DUMP} wiki" in result.stdout
    assert "--init_checkpoint=download/tf1_ckpt/model.ckpt-28252 " in result.stdout
    server.requests.clear()
    again = run(*flags, folder=tmp_path)
    assert again.returncode == 0 and again.stdout.count("already downloaded") == 7
    assert [path for path, _ in server.requests] == [
        f"/metadata/{INPUTS}.uri",
        f"/metadata/{INPUTS}.md5",
    ]  # these, at each call


def test_a_download_from_mlcommons_is_resumed(server, tmp_path):
    metadata = serve_mlcommons(server, INPUTS, INPUT_FILES)
    flags = ["--mlperf=dump", f"--metadata_url={metadata}", f"--md5={DUMP}={MD5}"]
    server.faults = [None, None, None, "cut"]  # .uri, .md5, the redirect, the file
    result = run(*flags, folder=tmp_path)
    assert result.returncode == 0 and (tmp_path / "download" / DUMP).read_bytes() == DATA
    assert (f"/bucket/{INPUTS}/{DUMP}", "bytes=300000-") in server.requests


def test_metadata_without_a_length(server, tmp_path):
    metadata = serve_mlcommons(server, TEXT, LOOSE)
    server.faults = ["chunked", "chunked"]
    assert run("--mlperf=text", f"--metadata_url={metadata}", folder=tmp_path).returncode == 0


# The published lists: https://github.com/mlcommons/r2-infra, training/metadata.
REAL_LISTS = {
    INPUTS: """\
004867db820d335c26d47fe90bc96a26  enwiki-20200101-pages-articles-multistream.xml.bz2.md5sum
00d47075e0f583fb7c0791fac1c57cb3  enwiki-20200101-pages-articles-multistream.xml.bz2
4550b87b0ea99302e44c84f6bed9aa97  License.txt
50797acd537880bfb5a7ade80d976129  tf1_ckpt/model.ckpt-28252-003.data-00000-of-00001
508515b9c73b0fff5da4484b1287ab97  tf1_ckpt/License.txt
508515b9c73b0fff5da4484b1287ab97  tf2_ckpt/License.txt
64800d5d8528ce344256daf115d4965e  vocab.txt
77d642b721cf590c740c762c7f476e04  tf2_ckpt/model.ckpt-28252.data-00000-of-00001
7f59165e21b7d566db610ff6756c926b  bert_config.json
dbd16c731e8a8113bc08eeed0326b8e7  tf1_ckpt/model.ckpt-28252.meta
f97de3ae180eb8d479555c939d50d048  tf1_ckpt/model.ckpt-28252.index
fc34dd7a54afc07f2d8e9d64471dc672  tf2_ckpt/model.ckpt-28252.index
""",
    TEXT: """\
07d7b32b485d563d2c052ef7e0b93819  License.txt
6f71334b0458c6c85142f5b20962fcc6  results_text.tar.gz
7d3a0619cb8bf7e829af99fa5c29daa8  bert_reference_results_text_md5.txt
ed72bada4134bfa2e91036746e45e551  results_text.zip
""",
}
CHECKPOINT_ENDS = ("data-00000-of-00001", "index", "meta")
REAL_PLACES = {
    "text": {"results4.License.txt", "results_text.tar.gz", "bert_reference_results_text_md5.txt"},
    "model": {"bert_config.json", "vocab.txt"}
    | {f"tf1_ckpt/model.ckpt-28252.{end}" for end in CHECKPOINT_ENDS},
    "dump": {DUMP, f"{DUMP}.md5sum"},
}


def real_data_set(group, without=None):
    name = mlcommons.DATA_SETS[group]
    md5s = parse_md5_list(REAL_LISTS[name], name)
    md5s = {path: md5 for path, md5 in md5s.items() if path != without}
    return mlcommons.DataSet(f"{name}.uri", "https://host/base", md5s)


@pytest.mark.parametrize("group", REAL_PLACES)
def test_mlcommons_real_lists(group):
    files = mlcommons.files_of_group(group, real_data_set(group))
    assert {file.place for file in files} == REAL_PLACES[group]
    for file in files:
        published = mlperf_files.BY_NAME.get(os.path.basename(file.place))
        if published and published.md5:
            assert (
                (file.size, file.md5)
                == (published.size, published.md5)
                == (
                    published.size,
                    file.listed_md5,
                )
            )
    if group == "model":
        weights = next(file for file in files if "data" in file.place)
        assert weights.url == f"https://host/base/{weights.name}" and "-003." in weights.name


@pytest.mark.parametrize("end", ["-003.data-00000-of-00001", ".index", ".meta"])
def test_a_checkpoint_without_one_of_its_files_is_an_error(end):
    data_set = real_data_set("model", without=f"tf1_ckpt/model.ckpt-28252{end}")
    missing = f"no tf1_ckpt/model.ckpt-28252{end.removeprefix('-003')}; it begins with"
    with pytest.raises(DataError, match=missing):
        mlcommons.files_of_group("model", data_set)


def test_a_renamed_file_is_recognized_by_its_published_md5(server, tmp_path, monkeypatch):
    """The weights under MLCommons' name, beside a wrong file of the published name."""
    right, wrong = "tf1_ckpt/model.ckpt-28252-003.data-00000-of-00001", PUBLISHED_OTHERWISE[2]
    metadata = serve_mlcommons(server, INPUTS, INPUT_FILES | {right: DATA})
    weights = mlperf_files.BY_NAME[os.path.basename(wrong)]
    weights = weights._replace(size=len(DATA), md5=MD5)
    monkeypatch.setitem(mlperf_files.BY_MD5, MD5, weights)
    monkeypatch.chdir(tmp_path)
    flags = ["--mlperf=model", f"--metadata_url={metadata}"]
    checks = [flag for flag in AS_LISTED if "data" not in flag]
    assert download.main([*flags, *checks]) == 0
    assert (tmp_path / "download" / wrong).read_bytes() == DATA
    (tmp_path / "download" / wrong).unlink()
    other = [f"--url={name}={server.url}/data.bin" for name in map(os.path.basename, [wrong])]
    assert download.main([*flags, *checks, *other]) == 0  # --url by the published name
    assert server.requests[-1] == ("/data.bin", None)


def test_what_mlperf_publishes_must_match_too(server, tmp_path):
    metadata = serve_mlcommons(server, INPUTS, INPUT_FILES)
    result = run("--mlperf=model", f"--metadata_url={metadata}", *AS_LISTED[1:], folder=tmp_path)
    listed = hashlib.md5(CONFIG).hexdigest()
    assert result.returncode == 1 and "downloaded 4, failed 1 (bert_config.json)" in result.stdout
    assert f"MLCommons lists the MD5 {listed}, MLPerf's README publishes 7f59165e" in result.stderr
    assert "next:" not in result.stdout and not os.path.exists(
        tmp_path / "download/bert_config.json"
    )


def test_a_file_that_differs_from_the_list(server, tmp_path):
    metadata = serve_mlcommons(server, TEXT, LOOSE)
    server.files[f"/bucket/{TEXT}/results4/eval.txt"] = b"other"
    result = run("--mlperf=text", f"--metadata_url={metadata}", folder=tmp_path)
    assert result.returncode == 1 and "downloaded 3, failed 1 (results4/eval.txt)" in result.stdout
    assert "it was removed" in result.stderr
    assert names(tmp_path / "download/results4") == sorted(PARTS.keys() - {"eval.txt"})


def serve_log_in(server, path, answer):
    """Instead of the file: a log-in page, behind a redirect or not, or 403."""
    if answer == "redirect":
        server.files["/access/log-in?kid=1"] = b"<!DOCTYPE html><p>Sign in"
        answer = ("redirect", f"{server.url}/access/log-in?kid=1")
    server.files[path] = answer


LOG_INS = {
    403: "the server answers 403 Forbidden",
    b"<html><p>Sign in": "the server sent a web page instead of ",
    "redirect": "/access/log-in)",
}


@pytest.mark.parametrize("answer", LOG_INS)
@pytest.mark.parametrize("ending", ["uri", "md5"])
def test_a_log_in_instead_of_metadata(server, tmp_path, ending, answer):
    metadata = serve_mlcommons(server, TEXT, LOOSE)
    serve_log_in(server, f"/metadata/{TEXT}.{ending}", answer)
    result = run("--mlperf=text", f"--metadata_url={metadata}", folder=tmp_path)
    assert result.returncode == 1 and "failed 1 (text)" in result.stdout
    for words in (
        f"{metadata}/{TEXT}.{ending}: ",
        LOG_INS[answer],
        f"{COMMAND} {metadata}/{TEXT}.uri",
        "--source=drive",
    ):
        assert words in result.stderr
    assert not os.path.exists(tmp_path / "download")


@pytest.mark.parametrize("answer", LOG_INS)
def test_a_log_in_instead_of_data(server, tmp_path, answer):
    metadata = serve_mlcommons(server, TEXT, LOOSE)
    serve_log_in(server, f"/data/{TEXT}/results4/eval.txt", answer)
    result = run("--mlperf=text", f"--metadata_url={metadata}", folder=tmp_path)
    assert result.returncode == 1 and "downloaded 3, failed 1 (results4/eval.txt)" in result.stdout
    for words in (
        f"/data/{TEXT}/results4/eval.txt: ",
        LOG_INS[answer],
        f"{COMMAND} {metadata}/{TEXT}.uri",
    ):
        assert words in result.stderr


def test_no_connection_to_mlcommons(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = run(
        "--mlperf=text,model,dump", f"--metadata_url=http://127.0.0.1:{port}", folder=tmp_path
    )
    assert result.returncode == 1 and "failed 3 (text, model, dump)" in result.stdout
    for words in (f"http://127.0.0.1:{port}/{TEXT}.uri", "proxy", "--source=drive"):
        assert words in result.stderr
    assert "log in" not in result.stderr
    assert result.stderr.count("cannot be reached") == 3  # two retries and one error, not three


def test_a_failed_list_is_fetched_once(server, tmp_path):
    flags = ["--mlperf=model,dump", f"--metadata_url={server.url}/metadata"]
    server.files[f"/metadata/{INPUTS}.uri"] = 500
    result = run(*flags, folder=tmp_path)
    assert result.returncode == 1 and "failed 2 (model, dump)" in result.stdout
    assert len(server.requests) == 3 and result.stderr.count("error: ") == 1
    assert "log in" not in result.stderr and "--source=drive" in result.stderr


def test_what_to_do_after_mlcommons_own_downloader(server, tmp_path):
    server.files[f"/metadata/{TEXT}.uri"] = server.files[f"/metadata/{INPUTS}.uri"] = 401
    flags = ["--mlperf=text,model,dump", "--out_dir=my data"]
    result = run(*flags, f"--metadata_url={server.url}/metadata", folder=tmp_path)
    for words in (
        f"mlc-r2-downloader.sh) -d 'my data/{TEXT}' {server.url}/metadata/{TEXT}.uri\n",
        f"  Then: tar -xzf 'my data/{TEXT}/results_text.tar.gz' -C 'my data' && python3 "
        "verify_dataset.py --results='my data/results4' "
        f"--md5_list='my data/{TEXT}/bert_reference_results_text_md5.txt'\n",
        f"  Then: mv 'my data/{INPUTS}/tf1_ckpt/model.ckpt-28252-003.data-00000-of-00001' "
        f"'my data/{INPUTS}/tf1_ckpt/model.ckpt-28252.data-00000-of-00001', then train.py "
        f"--init_checkpoint='my data/{INPUTS}/tf1_ckpt/model.ckpt-28252'\n",
        f"  Then: cleanup_scripts/process_wiki.sh 'my data/{INPUTS}/{DUMP}' wiki\n",
    ):
        assert words in result.stderr


NO_TEXT = "no part-00000-of-00500 and no archive of them"


@pytest.mark.parametrize(
    "ending, content, message",
    [
        ("uri", b"file:///etc", "holds 'file:///etc', expected one address"),
        ("uri", b"http://a b", "expected one address"),
        ("md5", b"no MD5", "line 1 is 'no MD5', expected '<MD5>  <path>'"),
        ("md5", b"\n", "lists no file"),
        ("md5", f"{MD5}  ./a/../../b\n".encode(), "the path './a/../../b' leads out of the folder"),
        ("md5", f"{MD5}  /etc/part-00000-of-00500\n".encode(), "leads out of the folder"),
        ("md5", f"{MD5}  ./a\n{MD5[::-1]}  a\n".encode(), "a is listed twice"),
        ("md5", f"{MD5}  ./a\x00b\n".encode(), "'./a\\x00b' is not a plain path"),
        ("md5", f"{MD5}  ./readme\n".encode(), f"{NO_TEXT}; it begins with: readme"),
        ("md5", f"{MD5}  ./part-00000-of-00500.gz\n".encode(), f"{NO_TEXT}; it begins with: part"),
        ("md5", f"{MD5}  ./eval.txt\n{MD5}  ./text.zip\n".encode(), f"{NO_TEXT}; it begins with"),
        ("md5", f"{MD5}  ./a.tar\n{MD5}  ./b.tar\n".encode(), "several archives: a.tar, b.tar"),
        (
            "md5",
            f"{MD5}  ./a/eval.txt\n{MD5}  ./b/eval.txt\n{MD5}  ./part-00000-of-00500\n".encode(),
            "several files for one place: results4/eval.txt",
        ),
    ],
)
def test_metadata_that_make_no_sense(server, tmp_path, ending, content, message):
    metadata = serve_mlcommons(server, TEXT, LOOSE)
    server.files[f"/metadata/{TEXT}.{ending}"] = content
    result = run("--mlperf=text", f"--metadata_url={metadata}", folder=tmp_path)
    assert (
        result.returncode == 1
        and f"{metadata}/{TEXT}.{ending}: " in result.stderr
        or "its list has" in result.stderr
    )
    assert message in result.stderr and not os.path.exists(tmp_path / "download")


def test_names_that_mlcommons_does_not_list(server, tmp_path):
    metadata = serve_mlcommons(server, TEXT, LOOSE)
    result = run(
        "--mlperf=text",
        f"--metadata_url={metadata}",
        "--md5=part-00007-of-00500=none",
        folder=tmp_path,
    )
    assert (
        result.returncode == 2
        and "part-00007-of-00500, of --url or --md5, is not among the files to download"
        in result.stderr
    )
    assert not os.path.exists(tmp_path / "download")


def test_a_listed_file_from_another_address(server, tmp_path):
    metadata = serve_mlcommons(server, TEXT, LOOSE)
    server.files[f"/data/{TEXT}/results4/eval.txt"], server.files["/other"] = 404, PARTS["eval.txt"]
    flags = ["--mlperf=text", f"--metadata_url={metadata}"]
    missing = run(*flags, folder=tmp_path)
    assert missing.returncode == 1 and "MLCommons lists it, but does not have it" in missing.stderr
    assert run(*flags, f"--url=eval.txt={server.url}/other", folder=tmp_path).returncode == 0


def test_text_from_the_drive(server, tmp_path):
    server.files["/text"] = archive(LOOSE)
    server.files["/list"] = "".join(
        f"{hashlib.md5(data).hexdigest()}  {name}\n" for name, data in PARTS.items()
    ).encode()
    urls = [
        f"--url=results_text.tar.gz={server.url}/text",
        f"--url=bert_reference_results_text_md5.txt={server.url}/list",
    ]
    md5 = f"--md5=results_text.tar.gz={hashlib.md5(server.files['/text']).hexdigest()}"
    result = run("--mlperf=text", "--source=drive", "--out_dir=here", *urls, md5, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files_below(tmp_path / "here").items() >= LOOSE.items()
    assert "(no published one to compare with)" in result.stdout
    assert (
        "python3 verify_dataset.py --results=here/results4 --md5_list=here/results4.md5"
        in result.stdout
    )


def test_one_failure_does_not_stop_the_others(server, tmp_path):
    server.files["/list"] = b"the list"
    urls = [
        f"--url=results_text.tar.gz={server.url}/gone",
        f"--url=bert_reference_results_text_md5.txt={server.url}/list",
    ]
    result = run("--mlperf=text", "--source=drive", *urls, folder=tmp_path)
    assert (
        result.returncode == 1 and "downloaded 1, failed 1 (results_text.tar.gz)" in result.stdout
    )
    assert names(tmp_path / "download") == ["bert_reference_results_text_md5.txt"]


def test_names_that_the_drive_does_not_have(tmp_path):
    result = run("--mlperf=text", "--source=drive", "--md5=vocab.txt=none", folder=tmp_path)
    assert (
        result.returncode == 2
        and "vocab.txt, of --url or --md5, is not among the files to download" in result.stderr
    )
