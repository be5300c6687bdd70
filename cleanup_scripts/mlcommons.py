"""MLCommons' downloads: which files a data set has, where they are, and their MD5s. Imported by
download.py, never run.

A data set is described by two small files. <metadata URL>/<data set>.uri holds the base address of
its files; <data set>.md5 beside it lists `<MD5>  <path>`. Each file is at <base address>/<path>.

The published lists: https://github.com/mlcommons/r2-infra, training/metadata.
"""

import os
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from mlperf_files import (
    ARCHIVE,
    BY_MD5,
    BY_NAME,
    CHECKPOINT,
    CHECKPOINT_FOLDER,
    CHECKPOINT_PLACES,
    DRIVE_URL,
    DUMP,
    GROUPS,
    LICENCE,
    MD5_LIST,
    PART,
    PUBLISHED,
    TEXT_FILE,
    Wanted,
    place_of,
)
from next_commands import after_own_downloader
from part_file import LoginRequired

from bert.common.files import DataError
from bert.common.md5_list import parse_md5_list

METADATA_URL = "https://training.mlcommons-storage.org/metadata"
DATA_SETS = {
    "text": "bert-preprocessed-wikipedia-dataset",
    "model": "bert-input-files",
    "dump": "bert-input-files",
}
OWN_DOWNLOADER = (
    "https://raw.githubusercontent.com/mlcommons/r2-downloader/refs/heads/main/mlc-r2-downloader.sh"
)
IF_MOVED = "If MLCommons moved it, give its new folder with --metadata_url"


class DataSet(NamedTuple):
    """base: the address of its files. md5s: {path: MD5}. uri: the address of its description."""

    uri: str
    base: str
    md5s: dict[str, str]


def uri_of(metadata_url: str, group: str) -> str:
    """The address that describes the data set of --mlperf=<group>."""
    return f"{metadata_url.rstrip('/')}/{DATA_SETS[group]}.uri"


def advice_after(error: Exception, uri: str, groups: Sequence[str], out_dir: str) -> str:
    """What to do when MLCommons' server does not send a file of these groups of one data set."""
    drive = "Or take the files from MLPerf's Google Drive: the same command with --source=drive"
    lines = []
    if isinstance(error, LoginRequired):
        # A folder of its own, because two data sets each have another License.txt.
        folder = os.path.join(out_dir, DATA_SETS[groups[0]])
        lines = [f"MLCommons' own downloader can log in: {own_command(uri, folder)}"]
        lines += [f"Then: {after_own_downloader(group, folder, out_dir)}" for group in groups]
    return "".join(f"\n  {line}" for line in (*lines, drive))


def own_command(uri: str, folder: str) -> str:
    """MLCommons' own command for a data set; it can log in, with a browser."""
    return f"bash <(curl -s {OWN_DOWNLOADER}) -d {shlex.quote(folder)} {shlex.quote(uri)}"


def read_data_set(uri: str, fetch: Callable[..., str]) -> DataSet:
    """Fetches both small files, each time. fetch: `Downloads.fetch` of download.py."""
    base = _fetch_text(uri, fetch).strip()
    if not re.fullmatch(r"https?://\S+", base):
        raise DataError(
            f"{uri}: holds {base[:80]!r}, expected one address that begins with http:// or https://"
        )
    md5_url = f"{uri.removesuffix('.uri')}.md5"
    return DataSet(uri, base, parse_md5_list(_fetch_text(md5_url, fetch), md5_url))


def _fetch_text(url, fetch):
    with tempfile.TemporaryDirectory(prefix="download-") as folder:
        path = os.path.join(folder, os.path.basename(url))
        fetch(url, path, if_missing=IF_MOVED)
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()


def files_of_group(group: str, data_set: DataSet) -> list[Wanted]:
    """The files of --mlperf=<group> in a data set; DataError if a necessary one is missing."""
    published = [_wanted(group, path, data_set) for path in _published_paths(group, data_set)]
    places = {file.place for file in published}
    chosen = _text_paths(data_set) if group == "text" else _other_paths(group, data_set)
    files = published + [
        file
        for file in (_wanted(group, path, data_set) for path in chosen)
        if file.place not in places  # what has the published MD5 comes first
    ]
    _check_complete(group, files, data_set)
    return sorted(files, key=lambda file: file.name)


def _published_paths(group, data_set):
    """The paths of published files, recognized by their MD5s whatever their names are."""
    paths: dict[str, str] = {}  # by MD5
    for path, md5 in data_set.md5s.items():
        if md5 in BY_MD5 and BY_MD5[md5].group == group:
            paths.setdefault(md5, path)
    return paths.values()


def _other_paths(group, data_set):
    """The paths that belong to the model or the dump by their names."""
    for path in data_set.md5s:
        folders, name = path.split("/")[:-1], os.path.basename(path)
        if group == "dump":
            belongs = DUMP.fullmatch(name.removesuffix(".md5sum")) is not None
        elif CHECKPOINT.fullmatch(name):
            belongs = CHECKPOINT_FOLDER in folders
        else:
            belongs = name in ("bert_config.json", "vocab.txt")
        if belongs:
            yield path


def _text_paths(data_set):
    """The paths of the text: its files, or else one archive; with lists of MD5s and the licence."""
    by_kind: dict[re.Pattern, list] = {kind: [] for kind in (TEXT_FILE, ARCHIVE, MD5_LIST, LICENCE)}
    for path in data_set.md5s:
        for kind, paths in by_kind.items():
            if kind.fullmatch(os.path.basename(path)):
                paths.append(path)
                break  # eval.md5 is not a list of MD5s of files
    text = by_kind[TEXT_FILE]
    if not any(PART.fullmatch(os.path.basename(path)) for path in text):
        text = _best_archive(by_kind[ARCHIVE], data_set.uri)
    licences = sorted(by_kind[LICENCE], key=lambda path: (path.count("/"), path))
    return [*text, *by_kind[MD5_LIST], *licences[:1]]


def _best_archive(paths, uri):
    """[the archive to take]: the one of the published name, else a .tar.gz, else the other one."""

    def rank(path):
        return os.path.basename(path) in BY_NAME, path.endswith((".tar.gz", ".tgz"))

    best = [path for path in paths if rank(path) == max(map(rank, paths))]
    if len(best) > 1:
        raise DataError(
            f"{uri}: its list has several archives: {', '.join(best[:5])}; expected one with the "
            "text"
        )
    return best


def _wanted(group, path, data_set):
    listed = data_set.md5s[path]
    published = BY_MD5.get(listed) or BY_NAME.get(os.path.basename(path))
    size, md5 = (published.size, published.md5 or listed) if published else (None, listed)
    name = published.name if published and published.md5 == listed else path
    url = f"{data_set.base.rstrip('/')}/{quote(path)}"
    return Wanted(path, place_of(group, name), url, size, md5, listed)


def _check_complete(group, files, data_set):
    """DataError if a necessary file is missing, or two files are for one place."""
    places = [file.place for file in files]
    if doubles := sorted({place for place in places if places.count(place) > 1}):
        raise DataError(
            f"{data_set.uri}: its list has several files for one place: {', '.join(doubles[:5])}"
        )
    names = [os.path.basename(place) for place in places]
    missing = []
    if group == "text" and not any(PART.fullmatch(n) or ARCHIVE.fullmatch(n) for n in names):
        missing = ["part-00000-of-00500 and no archive of them"]
    elif group == "model":
        missing = [place for place in CHECKPOINT_PLACES if place not in places]
    elif group == "dump" and not any(map(DUMP.fullmatch, names)):
        missing = ["*-pages-articles*.xml.bz2"]
    if missing:
        listed = ", ".join(list(data_set.md5s)[:5])
        raise DataError(
            f"{data_set.uri}: its list has no {', '.join(missing)}; it begins with: {listed}"
        )


def print_list(metadata_url: str) -> None:
    """Prints the groups, their addresses, and what MLPerf publishes of their files."""
    for group, what in GROUPS.items():
        print(f"--mlperf={group}: {what}\n  MLCommons: {uri_of(metadata_url, group)}")
        print("  Google Drive (--source=drive):")
        for file in PUBLISHED:
            if file.group == group:
                size = f"{file.size:,}" if file.size is not None else "size not published"
                print(f"  {file.name:52} {size:>18}  {file.md5 or 'MD5 not published'}")
                print(f"    {DRIVE_URL.format(file.drive_id)}")
