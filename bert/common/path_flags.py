"""What a flag that names files means, and what is wrong with it."""

import glob
import os
import stat

from bert.common.files import (
    DataError,
    is_file,
    is_folder,
    is_remote,
    names_in,
    remote_matches,
)


def _matches(pattern):
    """Returns the file of that name, or the files that match it as a pattern, sorted."""
    if is_remote(pattern):
        return [pattern] if is_file(pattern) else remote_matches(pattern)
    paths = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
    _refuse_dangling_links(paths)
    return list(filter(os.path.isfile, paths))


def _refuse_dangling_links(paths):
    """DataError for links to files that are gone: left out in silence, data would be missing."""
    dangling = [path for path in paths if os.path.islink(path) and not os.path.exists(path)]
    if dangling:
        more = f" (and {len(dangling) - 1} more such links)" if len(dangling) > 1 else ""
        raise DataError(
            f"{dangling[0]}: a link to {os.readlink(dangling[0])}, which does not exist{more}; "
            "bring the file back, or remove the link"
        )


def _kind_of(path):
    """Returns what lies at a local path that is no regular file, in words; None if nothing does."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    if _is_stream(path):
        return "a stream"
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode))


def _is_stream(path):
    """Whether a path means an open file of a process, as /dev/stdout does."""
    target = os.readlink(path) if os.path.islink(path) else path
    return os.path.realpath(os.path.dirname(os.path.abspath(target))).startswith("/proc/")


def expand_patterns(patterns: str) -> list[str]:
    """Returns the files of a comma-separated list of names and glob patterns, in that order.

    The matches of a pattern are sorted. Raises DataError for the first item that matches no file.
    """
    paths = []
    for item in patterns.split(","):
        matches = _matches(item)
        if not matches:
            raise DataError(_no_match(item, patterns))
        paths.extend(matches)
    return paths


def _no_match(item, patterns):
    """Returns why an item of `patterns` stands for no file."""
    if "," in patterns and not is_remote(patterns) and os.path.exists(patterns):
        return (
            f"{patterns} is taken for {patterns.count(',') + 1} names, as commas separate names; "
            "write ? for each comma, or rename it"
        )
    problem = "" if is_remote(item) else input_problem(item)
    return problem or f"{item or '(empty name)'}: no such file, and no file matches it as a pattern"


def input_problem(path: str) -> str:
    """Returns why a local path is no file that can be read, with what to do; "" if it may be one,
    or if there is nothing of that name.
    """
    kind = _kind_of(path)
    if kind == "a folder":
        return f"{path} is a folder, expected a file; all files in it: '{path.rstrip('/')}/*'"
    if kind:
        return f"{path} is {kind}, expected a regular file"
    if path == "-":
        return "-: standard input cannot be read; expected the name of a file"
    return ""


def list_folder_or_pattern(where: str, prefix: str = "") -> list[str]:
    """Returns the files that `where`, a folder or what `expand_patterns` takes, means.

    Of a folder, every file in it whose name begins with `prefix` but the hidden ones, sorted.
    Raises DataError if there is none.
    """
    if not is_folder(where):
        return expand_patterns(where)
    names = [
        name for name in names_in(where) if name.startswith(prefix) and not name.startswith(".")
    ]
    paths = [os.path.join(where, name) for name in names]
    if not is_remote(where):
        _refuse_dangling_links(paths)
    paths = list(filter(is_file, paths))
    if not paths:
        raise DataError(f"{where}: the folder holds no file" + (f" {prefix}*" if prefix else ""))
    return paths


def output_problems(path: str, *inputs: str | os.PathLike) -> list[str]:
    """Returns messages why `path` cannot be written; `inputs`: files that it must not overwrite."""
    if not path:
        return ["an empty name"]
    try:
        if is_folder(path):
            return [f"{path} is a folder, expected a file name"]
    except OSError as error:  # a scheme that is unknown
        return [str(error)]
    if any(_is_same_file(path, str(other)) for other in inputs):
        return [
            f"{path} would overwrite an input, or an output of the same call; give another name"
        ]
    if is_remote(path):
        return []
    if kind := _kind_of(path):
        return [f"{path} is {kind}, expected a regular file or a new name"]
    return new_folder_problems(os.path.dirname(os.path.realpath(path)))


def _is_same_file(path, other):
    """Whether two names mean one file: equal, links followed, or hard links of each other."""
    if is_remote(path) or is_remote(other):
        return path == other
    if os.path.exists(path) and os.path.exists(other):
        return os.path.samefile(path, other)
    return os.path.realpath(path) == os.path.realpath(other)


def new_folder_problems(folder: str) -> list[str]:
    """Returns messages why a local folder cannot be written in, or made, one level at most."""
    parent = os.path.dirname(os.path.abspath(folder))
    if not os.path.lexists(folder) and not os.path.lexists(parent):
        return [
            f"{folder}: neither it nor its parent folder exists; make it with: mkdir -p {folder}"
        ]
    return folder_problems(folder)


def nearest_existing(folder: str) -> str:
    """Returns a local folder if it is there, else the nearest one above it that is; absolute."""
    folder = os.path.abspath(folder)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return folder


def folder_problems(folder: str) -> list[str]:
    """Returns messages why files cannot be written in a local folder, made if needed."""
    existing = nearest_existing(folder)
    if not os.path.isdir(existing):
        return [f"{existing} is {_kind_of(existing) or 'a file'}, expected a folder"]
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return [f"{existing} is on a file system that is read-only"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"{existing} is not writable"]
    return []
