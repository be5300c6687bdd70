"""MLCommons' downloads: which files a data set has, where they are, and their MD5s. Imported by
download.py, never run.

A data set is described by two small files. <metadata URL>/<data set>.uri holds the base address of
its files; <data set>.md5 beside it lists `<MD5>  ./<path>`. Each file is at <base address>/<path>.
"""

import os
import re
import tempfile
from typing import NamedTuple
from urllib.parse import quote

from mlperf_files import (
    ARCHIVE,
    BY_NAME,
    CHECKPOINT,
    CHECKPOINT_FOLDER,
    DRIVE_URL,
    DUMP,
    GROUPS,
    PUBLISHED,
    Wanted,
    place_of,
)
from part_file import DownloadError, Refused
from resumable_download import fetch

METADATA_URL = "https://training.mlcommons-storage.org/metadata"
DATA_SETS = {
    "text": "bert-preprocessed-wikipedia-dataset",
    "model": "bert-input-files",
    "dump": "bert-input-files",
}
OWN_DOWNLOADER = (
    "https://raw.githubusercontent.com/mlcommons/r2-downloader/refs/heads/main/mlc-r2-downloader.sh"
)
# A group is complete only with a file like these: (pattern of the name, in words).
ESSENTIAL = {
    "text": (
        re.compile(f"{ARCHIVE.pattern}|part-.*"),
        "part-00000-of-00500 and no archive of them",
    ),
    "model": (re.compile(r"model\.ckpt-\d+\.index"), f"{CHECKPOINT_FOLDER}/model.ckpt-*.index"),
    "dump": (DUMP, "*-pages-articles*.xml.bz2"),
}


class DataSet(NamedTuple):
    """base: the address of its files. md5s: {path: MD5}. uri: where this is written."""

    uri: str
    base: str
    md5s: dict[str, str]


def uri_of(metadata_url: str, group: str) -> str:
    """The address that describes the data set of --mlperf=<group>."""
    return f"{metadata_url.rstrip('/')}/{DATA_SETS[group]}.uri"


def own_command(uri: str, out_dir: str) -> str:
    """MLCommons' own command for a data set; it can log in, with a browser."""
    return f"bash <(curl -s {OWN_DOWNLOADER}) -d {out_dir} {uri}"


def read_data_set(uri: str, out_dir: str, how: dict) -> DataSet:
    """Fetches both small files again. how: retries, first_wait and timeout of fetch()."""
    try:
        base = _fetch_text(uri, how).strip()
        if not re.fullmatch(r"https?://\S+", base):
            raise Refused(
                (
                    f"{uri}: holds {base[:80]!r}, "
                    "expected one address that begins with http:// or https://"
                ),
                "",
            )
        md5_url = f"{uri.removesuffix('.uri')}.md5"
        return DataSet(uri, base, parse_md5_list(_fetch_text(md5_url, how), md5_url))
    except DownloadError as error:
        raise DownloadError(
            f"{getattr(error, 'fault', error)}. MLCommons' own downloader, which can log in, may "
            f"get it: {own_command(uri, out_dir)}\n"
            "  Or take the files from MLPerf's Google Drive: the same command with --source=drive"
        ) from None


def _fetch_text(url, how):
    with tempfile.TemporaryDirectory(prefix="download-") as folder:
        path = os.path.join(folder, os.path.basename(url))
        fetch(url, path, **how)
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()


def parse_md5_list(text: str, source: str) -> dict[str, str]:
    """{path: MD5} of lines `<MD5>  ./<path>`.

    A line of another form or a path that leads elsewhere raises Refused.
    """
    md5s = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{32})\s+\*?(\S.*?)\s*", line)
        if not match:
            raise Refused(
                f"{source}: line {number} is {line[:80]!r}, expected '<MD5>  ./<path>'", ""
            )
        path = safe_path(match[2], f"{source}: line {number}")
        if md5s.setdefault(path, match[1].lower()) != match[1].lower():
            raise Refused(f"{source}: line {number}: {path} is listed twice, with two MD5s", "")
    if not md5s:
        raise Refused(f"{source}: lists no file", "")
    return md5s


def safe_path(path: str, source: str) -> str:
    """The path without `./`; an absolute one, or one with `..`, is refused."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not parts or not path.isprintable() or "\\" in path:
        raise Refused(
            f"{source}: the path {path[:80]!r} leads out of the folder, or is no plain path", ""
        )
    return "/".join(parts)


def files_of_group(group: str, data_set: DataSet) -> list[Wanted]:
    """The files of --mlperf=<group> in a data set; DownloadError if the main ones are missing."""
    paths = [path for path in data_set.md5s if _belongs(group, path)]
    pattern, in_words = ESSENTIAL[group]
    if not any(pattern.fullmatch(os.path.basename(path)) for path in paths):
        listed = ", ".join(list(data_set.md5s)[:5])
        raise DownloadError(f"{data_set.uri}: its list has no {in_words}; it begins with: {listed}")
    files = [_wanted(group, path, data_set) for path in paths]
    places = [file.place for file in files]
    if doubles := sorted({place for place in places if places.count(place) > 1}):
        raise DownloadError(
            f"{data_set.uri}: its list has several files for one place: {', '.join(doubles[:5])}"
        )
    return files


def _belongs(group, path):
    folders, name = path.split("/")[:-1], os.path.basename(path)
    if group == "model":
        is_checkpoint = CHECKPOINT.fullmatch(name) and CHECKPOINT_FOLDER in folders
        return bool(is_checkpoint) or name in ("bert_config.json", "vocab.txt")
    if group == "dump":
        return DUMP.fullmatch(name.removesuffix(".md5sum")) is not None
    return True


def _wanted(group, path, data_set):
    published, listed = BY_NAME.get(os.path.basename(path)), data_set.md5s[path]
    size, md5 = (published.size, published.md5 or listed) if published else (None, listed)
    return Wanted(
        path, place_of(group, path), f"{data_set.base.rstrip('/')}/{quote(path)}", size, md5, listed
    )


def print_list(metadata_url: str) -> None:
    """Prints the groups, their addresses, and what MLPerf publishes of their files."""
    for group, what in GROUPS.items():
        print(
            f"--mlperf={group}: {what}\n  MLCommons: {uri_of(metadata_url, group)}\n  Google Drive "
            "(--source=drive):"
        )
        for file in PUBLISHED:
            if file.group == group:
                size = f"{file.size:,}" if file.size is not None else "size not published"
                print(
                    f"  {file.name:52} {size:>18}  {file.md5 or 'MD5 not published'}\n    "
                    f"{DRIVE_URL.format(file.drive_id)}"
                )
