"""Files that appear whole or not at all, and remote paths.

A path with a scheme (`s3://`, `gs://`, `file://` and others) goes through fsspec, which is imported
for the first such path only.
"""

from __future__ import annotations  # tokenization.py is tested on Python 3.9 too

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import IO, Any, TypeVar

Result = TypeVar("Result")


class DataError(ValueError):
    """Bad input or flags: says where, what was found, what was expected and what to do next."""


class FlagError(DataError):
    """What was typed is wrong, and no work was done: exit code 2, as of argparse's own errors."""


def raise_if_any(problems: Sequence[str], error: type[DataError] = DataError) -> None:
    """Raises one error with every problem of the list, one per line; nothing for an empty list."""
    if problems:
        raise error("\n       ".join(problems))


def attempt(
    flag: str, function: Callable[..., Result], *args: Any
) -> tuple[list[str], Result | None]:
    """Calls a function; returns ([] or [its error, of the flag], its result or None)."""
    try:
        return [], function(*args)
    except (DataError, OSError) as error:
        return [f"{flag}: {error}"], None


# --------------------------------------------------------------------------------------------------
# Paths with a scheme


def is_remote(path: str | os.PathLike) -> bool:
    return "://" in str(path)


@contextlib.contextmanager
def _remote(path):
    """Gives (fsspec's file system, the path in it); its errors become OSErrors that name `path`."""
    import fsspec.core

    try:
        # What others write meanwhile is to be seen.
        system, inside = fsspec.core.url_to_fs(path, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise OSError(
            f"{path}: {error}; copy it to a local disk, or mount it as a folder"
        ) from None
    try:
        yield system, inside
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file or folder") from None
    except (OSError, DataError):
        raise
    except Exception as error:  # of the store's client: no credentials, no connection, ...
        raise OSError(f"{path}: {type(error).__name__}: {error}") from None


def _with_scheme_of(path, inside):
    """Returns a path in a file system, spelled as `path` is."""
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{inside if rest.startswith('/') else inside.lstrip('/')}"


def _has_folders(system):
    """Whether folders are made before files are written in them: object stores have none."""
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    return not protocols & {"s3", "s3a", "gs", "gcs"}


def _split(path):
    """Returns (folder, name) of a path, absolute if it is local."""
    if is_remote(path):
        folder, _, name = path.rpartition("/")
        return folder, name
    return os.path.split(os.path.abspath(path))


def is_file(path: str) -> bool:
    if not is_remote(path):
        return os.path.isfile(path)
    with _remote(path) as (system, inside):
        return system.isfile(inside)


def is_folder(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(path)
    with _remote(path) as (system, inside):
        return system.isdir(inside)


def names_in(folder: str) -> list[str]:
    """Returns the sorted names in a folder."""
    if not is_remote(folder):
        return sorted(os.listdir(folder))
    with _remote(folder) as (system, inside):
        paths = system.ls(inside, detail=False)
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})


def remote_matches(pattern: str) -> list[str]:
    """Returns the remote files that match a pattern, sorted."""
    with _remote(pattern) as (system, inside):
        found = sorted(path for path in system.glob(inside) if system.isfile(path))
        return [_with_scheme_of(pattern, path) for path in found]


def make_parent_folder(path: str) -> None:
    folder, _ = _split(path)
    if not is_remote(path):
        os.makedirs(folder, exist_ok=True)
    else:
        with _remote(folder) as (system, inside):
            if _has_folders(system):
                system.makedirs(inside, exist_ok=True)


# --------------------------------------------------------------------------------------------------
# Whole files


def read_blocks(path: str, size: int = 1 << 20) -> Iterator[bytes]:
    """Yields the contents of a file, `size` bytes at a time."""
    if not is_remote(path):
        with open(path, "rb", buffering=0) as file:
            while block := file.read(size):
                yield block
    else:
        with _remote(path) as (system, inside), system.open(inside, "rb") as file:
            while block := file.read(size):
                yield block


def read_bytes(path: str) -> bytes:
    """Returns the contents of a file."""
    if is_remote(path):
        with _remote(path) as (system, inside):
            return system.cat_file(inside)
    with open(path, "rb") as file:
        return file.read()


def fingerprint(blocks: Iterable[bytes]) -> dict[str, int | str]:
    """Returns {"bytes": size, "crc32c": 8 hexadecimal digits} of a file, given its contents."""
    import google_crc32c  # not where tokenization.py alone is used

    size, checksum = 0, 0
    for block in blocks:
        size, checksum = size + len(block), google_crc32c.extend(checksum, block)
    return {"bytes": size, "crc32c": f"{checksum:08x}"}


def size_of(path: str) -> int | None:
    """Returns the size of a file in bytes; None if there is none."""
    try:
        if not is_remote(path):
            return os.path.getsize(path)
        with _remote(path) as (system, inside):
            return system.size(inside)
    except FileNotFoundError:
        return None


def remove(path: str) -> None:
    """Removes a file, if it is there; the removal is on the disk when this returns."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            with _remote(path) as (system, inside):
                system.rm_file(inside)
        else:
            os.remove(path)
            sync_folder(os.path.dirname(os.path.abspath(path)))


def sync_folder(folder: str) -> None:
    """Brings a folder's changes of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: IO, mode: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> bool:
    """Locks an open file until it is closed; False if another process has locked it.

    file: open for writing, because NFS locks no other. Some file systems of clusters know no locks:
    there nothing is locked, and True is returned.
    """
    try:
        fcntl.flock(file, mode)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def locked(path: str, mode: int) -> Iterator[None]:
    """Makes and locks a file; BlockingIOError if it is taken and `mode` says not to wait.

    Does nothing in object stores, which know no locks.
    """
    if is_remote(path):
        yield
        return
    make_parent_folder(path)
    with open(path, "w") as file:
        if not lock(file, mode):
            raise BlockingIOError(f"{path}: locked by another process")
        yield


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path`; renames it to `path` if the block ends without error.

    On any error, also Ctrl-C, the temporary file is removed and an older file of that name stays as
    it was. Data is synced to the disk before the rename, so the name is never half a file's. A link
    stays a link: what it points to is written. What a killed writer of `path` left is removed.
    """
    target = str(path) if is_remote(path) else os.path.realpath(path)
    folder, name = _split(target)
    temporary = f"{folder}/.{name}.{secrets.token_hex(4)}.tmp"
    try:
        if is_remote(path):
            with _write_remote(temporary, target) as file:
                yield file
        else:
            _remove_dead_writers_files(folder, name)
            with _write_local(temporary, target, path) as file:
                yield file
    except BaseException:
        remove(temporary)
        raise


@contextlib.contextmanager
def _write_local(temporary, target, path):
    """path: of the target, as errors name it."""
    try:
        with open(temporary, "xb") as file:
            lock(file)  # while it lives
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
        sync_folder(os.path.dirname(target))
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk, a quota
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _remove_dead_writers_files(folder, name):
    """Removes the temporary files of a name whose writers are dead: a living one holds a lock.

    Where the file system knows no locks, nobody can tell, and they stay.
    """
    for leftover in _temporary_files(folder, {name}):
        with contextlib.suppress(OSError), open(f"{folder}/{leftover}", "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.remove(file.name)


@contextlib.contextmanager
def _write_remote(temporary, path):
    with _remote(path) as (system, inside):
        with _remote(temporary) as (_, half), system.open(half, "wb") as file:
            yield file
        system.mv(half, inside)


def remove_leftovers(folder: str, names: Collection[str]) -> int:
    """Removes the temporary files that killed writers of `names` left; returns how many.

    Only for a folder in which nobody else writes these files now.
    """
    if not is_folder(folder):
        return 0
    leftovers = _temporary_files(folder, names)
    for name in leftovers:
        remove(f"{folder}/{name}")
    return len(leftovers)


def _temporary_files(folder, names):
    """Returns the names of the temporary files, in a folder, of atomic_writer for `names`."""
    matches = [re.fullmatch(r"\.(.*)\.[0-9a-f]{8}\.tmp", name) for name in names_in(folder)]
    return [match[0] for match in matches if match and match[1] in names]
