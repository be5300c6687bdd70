"""cleanup_scripts/download.py against a server on 127.0.0.1 that misbehaves in every way a server can."""

import fcntl
import hashlib
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "cleanup_scripts"
sys.path.insert(0, str(SCRIPTS))

import download  # noqa: E402
from resumable_download import DownloadError, fetch  # noqa: E402

DATA = bytes(range(256)) * 4000  # 1,024,000 bytes
MD5 = hashlib.md5(DATA).hexdigest()
QUICK = {"retries": 3, "first_wait": 0.01, "timeout": 5.0}


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `faults` are used up first, one a request. `requests` records (path, Range header)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests = {"/data.bin": DATA}, [], []
        self.etag, self.knows_ranges, self.tells_length = '"v1"', True, True
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        """Clients hang up here on purpose."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            return self.send_error(fault)
        if fault == "html":
            return self.reply(200, b"<!DOCTYPE html><p>Quota exceeded", {"Content-Type": "text/html; charset=utf-8"})
        if fault == "disguised html":
            return self.reply(200, b"\n<html><p>Sign in", {"Content-Type": "application/octet-stream"})
        if self.path not in server.files:
            return self.send_error(404)
        data = server.files[self.path]
        validators = {"ETag": server.etag} if server.etag else {}
        start, status = 0, 200
        if wanted and server.knows_ranges and self.headers.get("If-Range") in (None, server.etag):
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(data):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            validators["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if fault == "other range":
            validators["Content-Range"] = f"bytes 0-{len(data) - 1}/{len(data)}"
        self.reply(status, data[start:], validators, cut=300_000 if fault == "cut" else None, stall=fault == "stall")

    def reply(self, status, body, headers, cut=None, stall=False):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if stall:
            time.sleep(1.0)
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


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


def test_a_new_process_goes_on_where_the_last_one_stopped(server, tmp_path):
    server.faults = ["cut"]
    with pytest.raises(DownloadError, match="300,000 bytes are kept: run the same command again"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **(QUICK | {"retries": 0}))
    assert names(tmp_path) == [".data.bin.part", ".data.bin.part.json"]
    fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert server.requests[-1] == ("/data.bin", "bytes=300000-")
    assert (tmp_path / "data.bin").read_bytes() == DATA and names(tmp_path) == ["data.bin"]


def test_a_changed_file_is_not_glued_to_the_old_beginning(server, tmp_path):
    server.faults = ["cut"]
    with pytest.raises(DownloadError):
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
    with pytest.raises(DownloadError):
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
    with pytest.raises(DownloadError, match="answers 500 .*; 4 tries in a row brought nothing"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert len(server.requests) == 4 and names(tmp_path) == []


def test_waits_longer_each_time(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("resumable_download.time.sleep", waits.append)
    server.faults = [500] * 9
    fetch(server.url + "/data.bin", tmp_path / "data.bin", retries=9, first_wait=1.0)
    longest = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))


def test_a_stalled_connection_is_tried_again(server, tmp_path):
    server.faults, server.files["/data.bin"] = ["stall"], DATA[:1000]
    server.tells_length = False
    fetch(
        server.url + "/data.bin", tmp_path / "data.bin", md5=hashlib.md5(DATA[:1000]).hexdigest(), **(QUICK | {"timeout": 0.2})
    )
    assert len(server.requests) == 2 and (tmp_path / "data.bin").read_bytes() == DATA[:1000]


def test_no_server_is_a_clear_error(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match="no connection: .*Connection refused"):
        fetch(f"http://127.0.0.1:{port}/data.bin", tmp_path / "data.bin", **(QUICK | {"retries": 1}))
    assert names(tmp_path) == []


def test_wrong_bytes_never_get_the_name(server, tmp_path):
    server.files["/data.bin"] = DATA[:-1] + b"x"
    with pytest.raises(DownloadError, match=f"MD5 of what arrived is .*, expected {MD5}; it was removed. Run the same"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", len(DATA), MD5, **QUICK)
    assert names(tmp_path) == []


def test_a_wrong_size_is_told_before_the_transfer(server, tmp_path):
    with pytest.raises(DownloadError, match="has 1,024,000 bytes, expected 17: it is another file"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", 17, MD5, **QUICK)
    assert names(tmp_path) == []


def test_neither_size_nor_md5_would_hide_a_cut(server, tmp_path):
    server.tells_length = False
    with pytest.raises(DownloadError, match="a cut transfer would not show"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)


@pytest.mark.parametrize("fault", ["html", "disguised html"])
def test_a_web_page_is_not_data(server, tmp_path, fault):
    server.faults = [fault]
    with pytest.raises(DownloadError, match="sent a web page instead of data.bin.* in a browser"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert names(tmp_path) == [] and len(server.requests) == 1


def test_a_git_lfs_pointer_is_not_data(server, tmp_path):
    server.files["/data.bin"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    with pytest.raises(DownloadError, match="a Git LFS pointer"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)


def test_a_missing_file_is_told_at_once(server, tmp_path):
    with pytest.raises(DownloadError, match=r"no such file on the server \(404\). Look elsewhere."):
        fetch(server.url + "/other.bin", tmp_path / "other.bin", if_missing="Look elsewhere.", **QUICK)
    assert len(server.requests) == 1 and names(tmp_path) == []


def test_two_downloads_do_not_write_one_file(server, tmp_path):
    with open(tmp_path / ".data.bin.part", "ab") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another download is writing it"):
            fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)


def test_a_full_disk_is_told_before_the_transfer(server, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr("resumable_download.shutil.disk_usage", lambda _: free)
    with pytest.raises(DownloadError, match="10 bytes free, 1,024,000 more are needed"):
        fetch(server.url + "/data.bin", tmp_path / "data.bin", **QUICK)
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------------------- the command


def run(*flags, folder):
    command = [sys.executable, str(SCRIPTS / "download.py"), *flags, "--first_wait=0.01", "--retries=2"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def serve_dump(server, listed=MD5):
    server.files["/testwiki/20240101/testwiki-20240101-pages-articles-multistream.xml.bz2"] = DATA
    lines = f"{'0' * 32}  testwiki-20240101-other.gz\n{listed}  testwiki-20240101-pages-articles-multistream.xml.bz2\n"
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
    assert again.returncode == 0 and f"{path}: was there, 1,024,000 bytes" in again.stdout
    (tmp_path / path).write_bytes(b"damaged")
    damaged = run(*flags, folder=tmp_path)
    assert damaged.returncode == 1 and f"remove it and run again: rm {path}" in damaged.stderr


def test_a_dump_with_a_wrong_md5(server, tmp_path):
    result = run(*serve_dump(server, listed="ab" * 16), folder=tmp_path)
    assert result.returncode == 1 and f"expected {'ab' * 16}; it was removed" in result.stderr
    assert names(tmp_path / "download") == ["testwiki-20240101-md5sums.txt"]


def test_a_dump_that_is_gone(server, tmp_path):
    result = run("--date=20200201", f"--base_url={server.url}/{{wiki}}/{{date}}", folder=tmp_path)
    assert result.returncode == 1
    assert re.search(
        r"enwiki-20200201-md5sums.txt: there is no such file .* Wikimedia removes old dumps: .*archive\.org", result.stderr
    )
    assert names(tmp_path / "download") == []


def test_an_unfinished_dump(server, tmp_path):
    result = run(*serve_dump(server), "--file=pages-articles.xml.bz2", folder=tmp_path)
    assert result.returncode == 1
    assert "lists 2 files, but no testwiki-20240101-pages-articles.xml.bz2: the dump is not finished" in result.stderr


def test_mlperfs_dump_is_compared_with_mlperfs_size(server, tmp_path):
    name = "enwiki-20200101-pages-articles-multistream.xml.bz2"
    server.files[f"/{name}"] = DATA
    result = run("--date=20200101", f"--base_url={server.url}", folder=tmp_path)
    assert result.returncode == 1 and "1,024,000 bytes, expected 17,751,214,669: it is another file" in result.stderr
    assert [path for path, _ in server.requests] == [f"/{name}"]


def test_mlperfs_files_from_another_address(server, tmp_path):
    server.files["/text"], server.files["/list"] = DATA, b"the list"
    urls = [f"--url=results_text.tar.gz={server.url}/text", f"--url=bert_reference_results_text_md5.txt={server.url}/list"]
    result = run("--mlperf=text", "--out_dir=here", *urls, f"--md5=results_text.tar.gz={MD5}", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert names(tmp_path / "here") == ["bert_reference_results_text_md5.txt", "results_text.tar.gz"]
    assert "(no published one to compare with)" in result.stdout
    assert "python3 verify_dataset.py --results=here/results4" in result.stdout


def test_one_failure_does_not_stop_the_others(server, tmp_path):
    server.files["/list"] = b"the list"
    urls = [f"--url=results_text.tar.gz={server.url}/gone", f"--url=bert_reference_results_text_md5.txt={server.url}/list"]
    result = run("--mlperf=text", *urls, folder=tmp_path)
    assert result.returncode == 1 and "there: 1, FAILED: 1 (results_text.tar.gz)" in result.stdout
    assert names(tmp_path / "download") == ["bert_reference_results_text_md5.txt"]


def test_all_problems_with_flags_are_told_at_once(tmp_path):
    flags = ["--date=latest", "--mlperf=all", "--url=x", "--md5=vocab.txt=12", "--base_url=ftp://x", "--timeout=0"]
    result = run(*flags, folder=tmp_path)
    assert result.returncode == 2 and names(tmp_path) == []
    for word in (
        "--date 'latest'",
        "--mlperf all",
        "--url 'x'",
        "--md5 vocab.txt=12",
        "ftp://x",
        "not among the files",
        "--timeout",
    ):
        assert word in result.stderr, word
    assert "nothing to download" in run(folder=tmp_path).stderr


def test_list_shows_what_is_known(tmp_path):
    result = run("--list", folder=tmp_path)
    assert result.returncode == 0
    for file in download.PUBLISHED:
        assert re.search(rf"{re.escape(file.name)} .*{file.md5 or 'MD5 not published'}\n.*{file.drive_id}", result.stdout)
