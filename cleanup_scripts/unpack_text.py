"""MLPerf's text out of its archive, all of it or nothing. Imported by download.py, never run.

The archive is read once. Its files are written to a hidden folder beside their place, which is
renamed when all of them are written. A record in the folder, .unpacked.json, says which archive
they are from, so that a second call does nothing.
"""

import errno
import json
import lzma
import os
import shlex
import shutil
import tarfile
import zlib

from mlperf_files import ARCHIVE, TEXT_FILE, TEXT_FOLDER, TEXT_MD5_LIST, Wanted

from bert.common.files import DataError, atomic_writer, lock
from bert.common.md5_list import parse_md5_list, safe_path
from bert.common.progress import ByteProgress

RECORD = ".unpacked.json"
LARGEST_LIST = 1 << 20  # bytes; a list of 502 files has 30,000
BLOCK_BYTES = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def unpack_archive_of(files: list[Wanted], out_dir: str, md5s: dict[str, str]) -> str | None:
    """Unpacks the archive among the files; returns in words what was done, None without archive.

    md5s: {path: MD5} of the downloaded files.
    """
    archives = [file.place for file in files if ARCHIVE.fullmatch(file.place)]
    if not archives:
        return None
    archive = os.path.join(out_dir, archives[0])
    return unpack_text(archive, os.path.join(out_dir, TEXT_FOLDER), md5s[archive])


def write_md5_list(files: list[Wanted], out_dir: str) -> None:
    """Writes the text's MD5s by the source: those of its files, or the list beside the archive."""
    md5s = {
        name: file.listed_md5
        for file in files
        if TEXT_FILE.fullmatch(name := os.path.basename(file.name))
    }
    for file in () if md5s else files:
        md5s = md5s or _listed_text(os.path.join(out_dir, file.place))
    if md5s:
        lines = "".join(f"{md5}  {name}\n" for name, md5 in sorted(md5s.items()))
        with atomic_writer(os.path.join(out_dir, TEXT_MD5_LIST)) as md5_list:
            md5_list.write(lines.encode())


def _listed_text(path):
    """{name: MD5} of the text by a file that lists it; {} if the file is something else."""
    if os.path.getsize(path) > LARGEST_LIST:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            listed = parse_md5_list(file.read(), path)
    except (DataError, UnicodeDecodeError):
        return {}
    return {
        name: md5
        for path, md5 in listed.items()
        if TEXT_FILE.fullmatch(name := os.path.basename(path))
    }


def unpack_text(archive: str, folder: str, archive_md5: str) -> str:
    """Unpacks the parts, eval.txt and eval.md5 to `folder`; returns in words what was done."""
    with open(archive, "r+b") as file:  # not written to: see lock()
        if not lock(file):
            raise DataError(f"{archive}: another process is unpacking it; wait until it ends")
        if os.path.exists(folder):
            _check_unpacked(folder, archive, archive_md5)
            return "already unpacked"
        print(f"{archive}: unpacking to {folder} ...", flush=True)
        return f"unpacked, {_unpack(file, archive, folder, archive_md5)} files"


def _check_unpacked(folder, archive, archive_md5):
    """DataError unless the folder has all files as they were unpacked from this archive."""
    try:
        with open(os.path.join(folder, RECORD)) as file:
            record = json.load(file)
        changed = [
            name
            for name, state in record["files"].items()
            if _state(os.path.join(folder, name)) != state
        ]
    except (OSError, ValueError, KeyError):
        raise DataError(
            f"{folder}: exists, but was not unpacked by this script; rename it and run again"
        ) from None
    advice = f"remove it and run again: rm -r {shlex.quote(folder)}"
    if record.get("archive_md5") != archive_md5:
        raise DataError(f"{folder}: unpacked from another archive than {archive}; {advice}")
    if changed:
        raise DataError(
            f"{folder}: {changed[0]} has changed since it was unpacked ({len(changed)} such "
            f"files); {advice}"
        )


def _state(path):
    """[size, time of change] of a file, None if there is none."""
    if not os.path.isfile(path):
        return None
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _unpack(file, archive, folder, archive_md5):
    """Returns the number of files."""
    parent, name = os.path.split(os.path.abspath(folder))
    temporary = os.path.join(parent, f".{name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of a call that was killed
    os.mkdir(temporary)
    unpacking = _Unpacking(file, archive, temporary)
    try:
        unpacking.run()
        files = {name: _state(os.path.join(temporary, name)) for name in unpacking.names}
        with atomic_writer(os.path.join(temporary, RECORD)) as record:
            record.write(json.dumps({"archive_md5": archive_md5, "files": files}).encode())
        os.rename(temporary, folder)
        return len(files)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise unpacking.disk_full() from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # nothing to do after the rename


class _Unpacking:
    """One pass over an archive: each member is checked, then written to `folder` if it is text."""

    def __init__(self, file, archive, folder):
        self._file, self._archive, self._folder = file, archive, folder
        self._archive_bytes = os.path.getsize(archive)
        self._text_bytes = 0  # written, or about to be written
        self._text_folder = None  # in the archive
        self._progress = ByteProgress(f"unpacking {os.path.basename(archive)}", self._archive_bytes)
        self.names = []

    def run(self):
        try:
            with self._progress, tarfile.open(fileobj=self._file, mode="r:*") as tar:
                for member in tar:
                    self._write(member, tar)
                while tar.fileobj.read(BLOCK_BYTES):  # to the checksum at the end of a .gz
                    pass
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._corrupt(error) from None
        except OSError as error:
            if error.errno is None:  # gzip's and bz2's errors in the data
                raise self._corrupt(error) from None
            raise
        if not self.names:
            raise self._unexpected("found none")

    def _write(self, member, tar):
        if not (member.isfile() or member.isdir()):
            raise DataError(
                f"{self._archive}: {member.name[:80]!r} is a link or a device, expected only files "
                "and folders"
            )
        is_root = member.isdir() and member.name in ("", ".")
        folder, name = os.path.split("" if is_root else safe_path(member.name, self._archive))
        if not (member.isfile() and TEXT_FILE.fullmatch(name)):
            return
        if self._text_folder not in (None, folder):
            raise self._unexpected(f"found {self._text_folder or '.'} and {folder or '.'}")
        if name in self.names:
            raise self._unexpected(f"found {name} twice")
        self._text_folder = folder
        self._text_bytes += member.size
        rest = self._archive_bytes - self._file.tell()  # bytes; unpacked they need more
        if shutil.disk_usage(self._folder).free < max(member.size, rest):
            raise self.disk_full()
        with atomic_writer(os.path.join(self._folder, name)) as file:
            shutil.copyfileobj(tar.extractfile(member), file, BLOCK_BYTES)
        self._progress.show_bytes(self._file.tell())
        self.names.append(name)

    def disk_full(self):
        """The error with the estimated size of the text, at the archive's ratio up to here."""
        read = max(self._file.tell(), 1)
        needed = max(self._text_bytes, self._text_bytes * self._archive_bytes // read)
        written = sum(entry.stat().st_size for entry in os.scandir(self._folder))
        free = shutil.disk_usage(self._folder).free + written
        return DataError(
            f"{self._archive}: disk full: {free:,} bytes free, the unpacked text needs about "
            f"{needed:,}; make room and run again"
        )

    def _corrupt(self, error):
        reason = str(error).partition("\n")[0].rstrip(":")
        return DataError(
            f"{self._archive}: corrupt, or not an archive ({reason}); remove it and run again: "
            f"rm {shlex.quote(self._archive)}"
        )

    def _unexpected(self, found):
        return DataError(
            f"{self._archive}: expected one folder with part-00000-of-00500 ..., {found}; unpack "
            "it by hand"
        )
