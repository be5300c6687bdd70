"""Files that appear whole or not at all, and patterns that must match something."""

import contextlib
import glob
import os
import secrets


class DataError(ValueError):
    """Bad input or flags; the message names file, place, what was found, what was expected and what to do next."""


def raise_all(problems):
    """Raises one DataError that tells every problem of the list, a line each; nothing for an empty list."""
    if problems:
        raise DataError("\n       ".join(problems))


@contextlib.contextmanager
def atomic_writer(path):
    """Opens a temporary file beside `path` for bytes, and gives it that name when the block ends without an error.

    On any error, also Ctrl-C, the temporary file is removed and an older file of that name stays as it was. Data is
    synced to the disk before the rename, so the name never stands for half a file.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def expand_patterns(patterns):
    """Returns the files that a comma-separated list of names and glob patterns means, in the order of the list.

    The matches of a pattern are sorted. Raises DataError naming the first item that matches no file.
    """
    paths = []
    for item in patterns.split(","):
        matches = [item] if os.path.isfile(item) else sorted(filter(os.path.isfile, glob.glob(item)))
        if not matches:
            raise DataError(f"{item or '(empty name)'}: no such file, and no file matches it as a pattern")
        paths.extend(matches)
    return paths


def list_folder_or_pattern(where):
    """Returns the files that `where`, a folder or what `expand_patterns` takes, means.

    Of a folder, every file in it but the hidden ones, sorted. Raises DataError if there is none.
    """
    if not os.path.isdir(where):
        return expand_patterns(where)
    names = sorted(name for name in os.listdir(where) if not name.startswith("."))
    paths = [path for name in names if os.path.isfile(path := os.path.join(where, name))]
    if not paths:
        raise DataError(f"{where}: the folder holds no file")
    return paths


def output_problems(path, *inputs):
    """Returns what stands against writing `path`, a list of messages; `inputs` are files that it must not overwrite."""
    folder = os.path.dirname(os.path.abspath(path))
    if not path:
        return ["an empty name"]
    if os.path.isdir(path):
        return [f"{path} is a folder, expected a file name"]
    if any(os.path.realpath(path) == os.path.realpath(other) for other in inputs):
        return [f"{path} would overwrite an input, or an output of the same call; give another name"]
    if os.path.exists(folder) and not os.path.isdir(folder):
        return [f"{folder} is a file, expected a folder to write {path} in"]
    if not os.path.isdir(folder) and not os.path.isdir(os.path.dirname(folder)):
        return [f"{folder}: neither it nor its parent folder exists; make it with: mkdir -p {folder}"]
    if not os.access(folder if os.path.isdir(folder) else os.path.dirname(folder), os.W_OK):
        return [f"{folder} is not writable"]
    return []


def make_parent_folder(path):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
