"""Checkpoints of a run: whole or not there, checked when they are read, the newest valid one found
without help.

    <folder>/step-00001200/
        shared.pt       what all ranks share: weights, optimizer, step, loader position
        rank-00000.pt   what is a rank's own: random number generators
        manifest.json   size and SHA-256 of the files above, written last

All ranks must see the same folder. `save` and `newest_valid` are collective: every rank calls them.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import sys

import torch
import torch.distributed as dist

from bert.common.files import DataError, sync_folder
from bert.training.distributed import control_group, gathered, shared_errors

_MANIFEST, _SHARED = "manifest.json", "shared.pt"


def save(folder, step, shared, own, keep_max):
    """Writes the checkpoint of a step, then removes all but the newest `keep_max` (0: none is
    removed).

    shared: a dict, of which rank 0's is kept. own: a dict of this rank. Both hold tensors, numbers,
    strings, lists and dicts. Raises DataError on every rank if one of them cannot write; older
    checkpoints stay.
    """
    rank, path, temporary = (
        dist.get_rank(),
        os.path.join(folder, _name(step)),
        _hidden(folder, step),
    )
    contents = {f"rank-{rank:05d}.pt": own} | ({_SHARED: shared} if rank == 0 else {})
    entries = {}
    try:
        with shared_errors():
            if rank == 0:
                # Of a run that was killed.
                for unfinished in glob.glob(os.path.join(glob.escape(folder), ".step-*.tmp")):
                    shutil.rmtree(unfinished, ignore_errors=True)
                os.makedirs(temporary)
        with shared_errors():
            for name, content in contents.items():
                entries[name] = _write(os.path.join(temporary, name), content)
        of_ranks = gathered(entries)
        with shared_errors():
            if rank == 0:
                files = {name: entry for found in of_ranks for name, entry in found.items()}
                _write_manifest(temporary, {"step": step, "ranks": len(of_ranks), "files": files})
                _put_in_place(temporary, path)
    except DataError as error:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(
            f"{path}: the checkpoint could not be written: {error}; earlier checkpoints are as "
            "they were: make room, then give the same command again"
        ) from None
    if rank == 0:
        _tidy(folder, step, keep_max)


def newest_valid(folder):
    """`find_newest_valid` by rank 0, for every rank."""
    found = [None]
    with shared_errors():
        if dist.get_rank() == 0:
            found = [find_newest_valid(folder)]
    dist.broadcast_object_list(found, src=0, group=control_group())
    return found[0]


def find_newest_valid(folder):
    """Returns (path, number of ranks that wrote it) of the newest checkpoint whose files are as its
    manifest says, or None.

    Reports corrupt ones on stderr. DataError if all are, as to start again would destroy
    what is there, or if one cannot be read: it may be good, and a run that resumed from an older
    one would lose it.
    """
    steps = sorted(_steps(folder), reverse=True)
    for step in steps:
        path = os.path.join(folder, _name(step))
        problem = _problem_of(path)
        if problem is None:
            return path, _read_manifest(path)["ranks"]
        print(
            f"warning: {path}: {problem}: the checkpoint is corrupt and is skipped",
            file=sys.stderr,
        )
    if steps:
        raise DataError(
            f"{folder}: none of the {len(steps)} checkpoints can be used; "
            "put one back, or choose another --output_dir for a new run"
        )
    return None


def is_checkpoint(path):
    return os.path.isfile(os.path.join(path, _MANIFEST))


def load_weights(path):
    """Returns the model's weights in a checkpoint, {parameter's name: float32 tensor}; DataError if
    it is corrupt.
    """
    problem = _problem_of(path)
    if problem:
        raise DataError(f"{path}: {problem}: the checkpoint is corrupt; use another")
    return load_shared(path)["model"]["weights"]


def load_shared(path):
    """Returns the dict that all ranks share, on the CPU."""
    # One copy in memory for all processes of a machine.
    shared = _read(os.path.join(path, _SHARED), mmap=True)
    if "flags" not in shared:
        raise DataError(
            f"{path}: an earlier train.py wrote it and kept less in it; go on with that version of "
            "the project, or take its model/ as --init_checkpoint for another --output_dir"
        )
    return shared


def load_own(path):
    """Returns this rank's dict, on the CPU."""
    return _read(os.path.join(path, f"rank-{dist.get_rank():05d}.pt"))


def random_state(device):
    """Returns the states of the generators that this process draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state, device):
    torch.set_rng_state(state["cpu"])
    # It is not in a checkpoint that was written on the CPU.
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


# --------------------------------------------------------------------------------------------------


def _name(step):
    return f"step-{step:08d}"


def _hidden(folder, step):
    """The name of what is being written or removed."""
    return os.path.join(folder, f".{_name(step)}.tmp")


def _steps(folder):
    """The steps of the checkpoints in a folder; unfinished ones have other names."""
    with contextlib.suppress(FileNotFoundError):
        return [
            int(name.removeprefix("step-"))
            for name in os.listdir(folder)
            if re.fullmatch(r"step-\d{8,}", name)
        ]
    return []


def _write(path, content):
    """Writes a dict; returns [bytes, SHA-256]."""
    with open(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of torch's zip writer; what the disk said is behind it
            raise OSError(str(error.__context__ or error)) from error
        file.flush()
        os.fsync(file.fileno())
    return [os.path.getsize(path), _digest(path)]


def _read(path, mmap=False):
    # weights_only: nothing but tensors and plain values is made, so a foreign file can run no code.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder, manifest):
    with open(os.path.join(folder, _MANIFEST), "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(path):
    with open(os.path.join(path, _MANIFEST)) as file:
        return json.load(file)


def _problem_of(path):
    """What is wrong with a checkpoint, in words, or None; DataError if that cannot be found out."""
    try:
        for name, (size, digest) in _read_manifest(path)["files"].items():
            file = os.path.join(path, name)
            if os.path.getsize(file) != size:
                return f"{name} has {os.path.getsize(file):,} bytes, expected {size:,}"
            if _digest(file) != digest:
                return f"{name} does not have its SHA-256"
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        return f"{type(error).__name__}: {error}"
    except OSError as error:
        raise DataError(
            f"{path}: the checkpoint cannot be read, which does not mean that it is corrupt: "
            f"{error}; give the same command again when the storage is well, "
            "or move this folder away to go on from the checkpoint before it"
        ) from None
    return None


def _put_in_place(temporary, path):
    if os.path.isdir(path):  # the run went back over it
        _set_aside(path)
    sync_folder(temporary)
    os.rename(temporary, path)
    sync_folder(os.path.dirname(path))


def _set_aside(path):
    """Renames a checkpoint over which the run went back.

    It was found corrupt, but maybe by a fault that did not last.
    """
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f"corrupt-{name}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
    os.rename(path, aside)
    print(
        f"warning: {path} is corrupt and was renamed {aside}: remove it to have its room",
        file=sys.stderr,
    )


def _tidy(folder, newest, keep_max):
    """Removes all but the `keep_max` newest up to step `newest` (0: none), and sets aside those
    behind it.

    What cannot be done is told on stderr: the newest checkpoint is in place, and the next save
    tries again.
    """
    steps = sorted(_steps(folder))
    kept = [step for step in steps if step <= newest]
    try:
        for step in steps[len(kept) :]:
            _set_aside(os.path.join(folder, _name(step)))
        for step in kept[: max(0, len(kept) - keep_max)] if keep_max else []:
            # So that half of it never bears the name.
            os.rename(os.path.join(folder, _name(step)), _hidden(folder, step))
            shutil.rmtree(_hidden(folder, step))
    except OSError as error:
        print(
            f"warning: {folder}: an old checkpoint could not be removed: {error}", file=sys.stderr
        )
