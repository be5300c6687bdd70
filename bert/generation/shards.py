"""A shard: one text file, the file of examples made of it (TFRecord or instances), and a manifest
that says of what and how it was made.

The manifest of `<folder>/<name>` is `<folder>/.manifest/<name>.json`: hidden, so that nobody takes
it for data. It is written after the file is in its place; from before the work begins until then it
says "in work": whenever the work is killed, a manifest never stands beside a file that it does not
describe, and a file without one is somebody else's.

Files are told apart by size and CRC32C. Its 32 bits find any accidental change but one in 4
billion, it costs the least (7 GB/s on one core, MD5 0.8, SHA-256 1.4; a part has 500 MB), and
object stores know it of their files.
"""

import contextlib
import fcntl
import json
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bert.common import files, path_flags
from bert.generation.part import UNICODE, Settings, generate
from tokenization import FullTokenizer

MANIFEST_FOLDER = ".manifest"
_IN_WORK = {"state": "in work"}
_FORMAT_NAMES = {"tfrecord": "TFRecord file", "instances": "instance file"}


class Shard(NamedTuple):
    input: str  # path of the text
    output: str  # path of the file of examples

    @property
    def name(self) -> str:
        return self.output.rpartition("/")[2]

    @property
    def manifest(self) -> str:
        folder, _, name = self.output.rpartition("/")
        return f"{folder}/{MANIFEST_FOLDER}/{name}.json"


class Recipe(NamedTuple):
    """What all shards have in common."""

    settings: Settings
    vocab_file: str
    vocabulary: dict  # its `fingerprint`
    output_format: str  # one of bert.generation.part.FORMATS


def fingerprint(path: str) -> dict[str, int | str]:
    """Returns {"bytes": size, "crc32c": 8 hexadecimal digits} of a file."""
    return files.fingerprint(files.read_blocks(path))


def _conditions(recipe):
    """Returns what, beside the text, decides about the bytes of a shard."""
    return {
        "settings": recipe.settings._asdict(),
        "vocabulary": recipe.vocabulary,
        "unicode": UNICODE,
        "format": recipe.output_format,
    }


# --------------------------------------------------------------------------------------------------
# Locks: one run at a time works on a folder. A killed run's processes finish the part that they are
# at; the next run waits.


def _lock(output_dir, name, mode):
    """Holds a lock of the folder; BlockingIOError if it is taken and `mode` says not to wait."""
    return files.locked(f"{output_dir}/{MANIFEST_FOLDER}/{name}", mode)


@contextlib.contextmanager
def lock_of_run(output_dir: str) -> Iterator[None]:
    """Held by a run.

    BlockingIOError if another one has it; waits for what processes of a killed run still write.
    """
    with _lock(output_dir, "run.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
        with _lock(output_dir, "parts.lock", fcntl.LOCK_EX):
            pass
        yield


def _lock_of_part(shard):
    """Held by a process while it makes a part."""
    return _lock(shard.output.rpartition("/")[0], "parts.lock", fcntl.LOCK_SH)


# --------------------------------------------------------------------------------------------------
# Making


def make(shard: Shard, recipe: Recipe) -> dict[str, Any]:
    """Makes the file of a shard, then its manifest, which is returned.

    DataError or OSError if it cannot be made.
    """
    cpu, started = time.process_time(), time.monotonic()
    settings = recipe.settings
    tokenizer = FullTokenizer(
        recipe.vocab_file,
        settings.do_lower_case,
        preserve_unused_tokens=settings.preserve_unused_tokens,
    )
    if fingerprint(recipe.vocab_file) != recipe.vocabulary:
        raise files.DataError(f"{recipe.vocab_file}: changed while the shards were made; run again")
    with _lock_of_part(shard):
        _remove_leftovers(shard)
        _write_manifest(shard, _IN_WORK)
        try:
            made = generate(
                [shard.input], [shard.output], tokenizer, settings,
                output_format=recipe.output_format, wants_checksums=True,
            )  # fmt: skip
        except BaseException:
            if files.size_of(shard.output) is None:
                files.remove(shard.manifest)
            raise
        output = {
            "documents": made.documents,
            "records": made.records,
            "bytes": made.bytes,
            "crc32c": f"{made.checksums[0]:08x}",
        }
        cost = {
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "wall_seconds": round(time.monotonic() - started, 3),
            "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            // 1000,  # of the process so far
        }
        manifest = {
            "input": {"path": shard.input, **made.texts[0]},
            **_conditions(recipe),
            "output": output,
            "cost": cost,
            "notes": made.notes,
        }
        _write_manifest(shard, manifest)
    return manifest


def _write_manifest(shard, content):
    files.make_parent_folder(shard.manifest)
    with files.atomic_writer(shard.manifest) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def _remove_leftovers(shard):
    """Removes what an earlier attempt at this shard left when it was killed."""
    for path in (shard.output, shard.manifest):
        folder, _, name = path.rpartition("/")
        files.remove_leftovers(folder, {name})


def remove_leftovers(output_dir: str, shards: Sequence[Shard]) -> None:
    """Removes what killed runs left half-written of any of the shards."""
    files.remove_leftovers(output_dir, {shard.name for shard in shards})
    files.remove_leftovers(
        f"{output_dir}/{MANIFEST_FOLDER}", {f"{shard.name}.json" for shard in shards}
    )


def unexpected_files(output_dir: str, shards: Sequence[Shard]) -> list[str]:
    """Returns the names of files that lie among the shards, and would be trained on with them, but
    are none of them.
    """
    try:
        paths = path_flags.list_folder_or_pattern(output_dir)
    except files.DataError:  # no folder yet, or nothing in it
        return []
    return sorted({path.rpartition("/")[2] for path in paths} - {shard.name for shard in shards})


# --------------------------------------------------------------------------------------------------
# Whether a shard is done


class Status(NamedTuple):
    """Whether a shard is done (problem is None), not ended (problem is "") or has to be made again
    (problem says why).
    """

    problem: str | None
    manifest: dict | None = None  # of a shard that is done
    replaces: bool = False  # whether making it again replaces a file that may be somebody's


def status(shard: Shard, recipe: Recipe, *, reads_output: bool = False) -> Status:
    """Returns the `Status` of a shard; what lies in its file is looked at only if `reads_output`,
    its size always.
    """
    size, kind = files.size_of(shard.output), _FORMAT_NAMES[recipe.output_format]
    if files.size_of(shard.manifest) is None:
        problem = "" if size is None else "it has no manifest: another command made it"
        return Status(problem, replaces=size is not None)
    try:
        manifest = json.loads(files.read_bytes(shard.manifest))
        if manifest == _IN_WORK:
            return Status("")
        if size is None:
            return Status(f"its {kind} is gone")
        problem = _difference(manifest, shard, recipe, size, reads_output)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Status("its manifest cannot be read", replaces=size is not None)
    return Status(problem, replaces=True) if problem else Status(None, manifest)


def _difference(manifest, shard, recipe, size, reads_output):
    """Returns the first thing in which a manifest and what is there differ, the cheap ones first;
    None if they agree.
    """
    conditions, kind = _conditions(recipe), _FORMAT_NAMES[recipe.output_format]
    # Earlier versions knew one format.
    if (found := manifest.get("format", "tfrecord")) != recipe.output_format:
        return f"--output_format was {found}, is {recipe.output_format}"
    for name, value in conditions["settings"].items():
        if manifest["settings"][name] != value:
            return f"--{name} was {manifest['settings'][name]}, is {value}"
    if manifest["vocabulary"] != conditions["vocabulary"]:
        return "the vocabulary changed"
    if manifest["unicode"] != conditions["unicode"]:
        return (
            f"an earlier version made it, with Unicode {manifest['unicode']}; "
            f"MLPerf's is {conditions['unicode']}"
        )
    output = manifest["output"]
    if size != output["bytes"]:
        return f"its {kind} has {size:,} bytes, {output['bytes']:,} were written"
    text = {name: manifest["input"][name] for name in ("bytes", "crc32c")}
    if files.size_of(shard.input) != text["bytes"] or fingerprint(shard.input) != text:
        return "its text changed"
    if reads_output and fingerprint(shard.output)["crc32c"] != output["crc32c"]:
        return f"its {kind} is corrupt: same size, other contents"
    return None
