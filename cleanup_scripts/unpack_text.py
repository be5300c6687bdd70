"""MLPerf's text out of its archive, all of it or nothing. Imported by download.py, never run.

The files are written to a hidden folder beside their place, which is then renamed. A record in the
folder, .unpacked.json, says of which archive they are, so that a second call does nothing.
"""

import fcntl
import json
import lzma
import os
import shutil
import tarfile
import zlib

import cleanup_io
from mlcommons import parse_md5_list, safe_path
from mlperf_files import ARCHIVE, TEXT_FILE, TEXT_FOLDER, TEXT_MD5_LIST, Wanted
from part_file import DownloadError

RECORD = ".unpacked.json"
LARGEST_LIST = 1 << 20  # bytes; a list of 502 files has 30,000
_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


def unpack_archive_of(files: list[Wanted], out_dir: str, md5s: dict[str, str]) -> str | None:
    """Unpacks the archive among the downloaded files; returns in words what was done, None if the
    text came as files.

    md5s: {path: MD5} of the downloaded files.
    """
    if _loose_text(files):
        return None
    archives = [file.place for file in files if ARCHIVE.fullmatch(file.place)]
    if len(archives) > 1:
        raise DownloadError(
            f"{out_dir}: several archives: {', '.join(archives[:5])}; expected one with the text; "
            "unpack it by hand"
        )
    archive = os.path.join(out_dir, archives[0])
    return unpack_text(archive, os.path.join(out_dir, TEXT_FOLDER), md5s[archive])


def write_md5_list(files: list[Wanted], out_dir: str) -> None:
    """Writes the MD5s of the text as the source lists them: those of its files, or a list that came
    beside the archive.
    """
    md5s = {os.path.basename(file.name): file.listed_md5 for file in _loose_text(files)}
    for file in () if md5s else files:
        md5s = md5s or _listed_text(os.path.join(out_dir, file.place))
    if md5s:
        lines = "".join(f"{md5}  {name}\n" for name, md5 in sorted(md5s.items()))
        cleanup_io.write_text(os.path.join(out_dir, TEXT_MD5_LIST), lines)


def _loose_text(files):
    return [file for file in files if TEXT_FILE.fullmatch(os.path.basename(file.name))]


def _listed_text(path):
    """{name: MD5} of the text by a file that lists it; {} if the file is something else."""
    if os.path.getsize(path) > LARGEST_LIST:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            listed = parse_md5_list(file.read(), path)
    except (DownloadError, UnicodeDecodeError):
        return {}
    return {
        name: md5
        for path, md5 in listed.items()
        if TEXT_FILE.fullmatch(name := os.path.basename(path))
    }


def unpack_text(archive: str, folder: str, archive_md5: str) -> str:
    """Unpacks the parts, eval.txt and eval.md5 to `folder`; returns in words what was done."""
    with open(archive, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"{archive}: another call is unpacking it; wait for that one"
            ) from None
        if os.path.exists(folder):
            _check_unpacked(folder, archive, archive_md5)
            return "was unpacked before"
        try:
            return _unpack(archive, folder, archive_md5)
        except _UNREADABLE as error:
            raise DownloadError(
                f"{archive}: damaged, or no archive ({error}); "
                f"remove it and run again: rm {archive}"
            ) from None


def _check_unpacked(folder, archive, archive_md5):
    """Raises DownloadError unless all files of the folder are there as they were unpacked from this
    archive.
    """
    try:
        with open(os.path.join(folder, RECORD)) as file:
            record = json.load(file)
        changed = [
            name
            for name, state in record["files"].items()
            if _state(os.path.join(folder, name)) != state
        ]
    except (OSError, ValueError, KeyError):
        raise DownloadError(
            f"{folder}: is there, but not unpacked by this script; rename it and run again"
        ) from None
    if record.get("archive_md5") != archive_md5:
        raise DownloadError(
            f"{folder}: unpacked from another archive than {archive}; "
            f"remove it and run again: rm -r {folder}"
        )
    if changed:
        raise DownloadError(
            f"{folder}: {changed[0]} has changed since it was unpacked ({len(changed)} such "
            f"files); remove the folder and run again: rm -r {folder}"
        )


def _state(path):
    """[size, time of change] of a file, None if there is none."""
    if not os.path.isfile(path):
        return None
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _unpack(archive, folder, archive_md5):
    sizes = _text_files(archive)
    parent, name = os.path.split(os.path.abspath(folder))
    temporary = os.path.join(parent, f".{name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of a call that was cut short
    _check_disk_space(parent, sum(sizes.values()))
    os.mkdir(temporary)
    try:
        _extract(archive, set(sizes), temporary)
        files = {
            name: _state(os.path.join(temporary, name)) for name in map(os.path.basename, sizes)
        }
        with open(os.path.join(temporary, RECORD), "w") as file:
            json.dump({"archive_md5": archive_md5, "files": files}, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return f"unpacked, {len(files)} files"


def _text_files(archive):
    """{name in the archive: bytes} of the text; DownloadError if the archive holds a link, an odd
    path, or no one text.
    """
    sizes = {}
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if not (member.isfile() or member.isdir()):
                raise DownloadError(
                    f"{archive}: {member.name[:80]!r} is a link or a device, "
                    "expected files and folders only"
                )
            is_root = member.isdir() and member.name in ("", ".")
            path = "" if is_root else safe_path(member.name, archive)
            if member.isfile() and TEXT_FILE.fullmatch(os.path.basename(path)):
                sizes[member.name] = member.size
    folders = {os.path.dirname(name) for name in sizes}
    if len(folders) != 1 or len(set(map(os.path.basename, sizes))) != len(sizes):
        found = f"{len(folders)} folders with parts" if folders else "none"
        raise DownloadError(
            f"{archive}: expected one folder with part-00000-of-00500 ..., found {found}; "
            "unpack it by hand"
        )
    return sizes


def _check_disk_space(folder, needed):
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{folder}: {free:,} bytes free, the unpacked text needs {needed:,}; "
            "make room and run again"
        )


def _extract(archive, wanted, folder):
    """Writes these files of the archive into the folder, without the archive's folders."""
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if member.name in wanted:
                name = os.path.basename(member.name)
                tar.extract(member.replace(name=name), folder, filter="data")
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
