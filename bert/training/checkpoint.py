"""Checkpoints of a run: written whole or not at all, checked, and the newest valid one found.

    <folder>/step-00001200/
        shared.pt       the state that all ranks share: weights, optimizer, step, loader position
        rank-00000.pt   the state of one rank: random number generators
        manifest.json   size and SHA-256 of the files above, written last

All ranks must see the same folder. Rank 0 writes, the others read.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bert.common.files import DataError, atomic_writer, sync_folder
from bert.training.distributed import gathered, shared_errors

_MANIFEST, _SHARED = "manifest.json", "shared.pt"

State = dict[str, Any]  # tensors, numbers, strings, lists and dicts


class Checkpoint(NamedTuple):
    path: str
    num_ranks: int  # of the run that wrote it


def save(folder: str, step: int, shared: State, own_states: list[State], keep_max: int) -> None:
    """Writes a step's checkpoint; then removes all but the newest `keep_max` (0: removes none).

    shared, own_states: the state that all ranks share, and that of each; on the CPU. For one rank
    to call. DataError if the checkpoint cannot be written; older ones stay.
    """
    path, temporary = os.path.join(folder, _name(step)), _hidden(folder, step)
    contents = {_SHARED: shared} | {_own(rank): state for rank, state in enumerate(own_states)}
    try:
        remove_unfinished(folder)
        os.makedirs(temporary)
        files = {
            name: _write(os.path.join(temporary, name), content)
            for name, content in contents.items()
        }
        manifest = {"step": step, "ranks": len(own_states), "files": files}
        with atomic_writer(os.path.join(temporary, _MANIFEST)) as file:
            file.write(json.dumps(manifest, indent=1).encode())
        _put_in_place(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(
            f"{path}: the checkpoint could not be written: {error}; earlier checkpoints are "
            "unchanged: free some space, then run the same command again"
        ) from None
    _remove_old(folder, step, keep_max)


def has_checkpoints(output_dir: str) -> bool:
    """Whether a run has saved any, be they valid or not."""
    return bool(_steps(os.path.join(output_dir, "checkpoints")))


def remove_unfinished(folder: str) -> None:
    """Removes what was being written or removed in a folder when a run was killed."""
    for left_over in glob.glob(os.path.join(glob.escape(folder), ".step-*.tmp")):
        shutil.rmtree(left_over, ignore_errors=True)


def newest_valid(folder: str) -> Checkpoint | None:
    """Calls `find_newest_valid` on rank 0 and returns its result on every rank. Collective."""
    with shared_errors():
        found = find_newest_valid(folder) if dist.get_rank() == 0 else None
    return gathered(found)[0]


def find_newest_valid(folder: str) -> Checkpoint | None:
    """Returns the newest checkpoint whose files match its manifest, or None if there is none.

    Reports corrupt ones on stderr. DataError if all are corrupt (a new run would overwrite them),
    or if one cannot be read (it may be valid, and resuming from an older one would lose it).
    """
    steps = sorted(_steps(folder), reverse=True)
    for step in steps:
        path = os.path.join(folder, _name(step))
        problem = _problem_of(path)
        if problem is None:
            return Checkpoint(path, _read_manifest(path)["ranks"])
        _warn(f"{path}: {problem}: the checkpoint is corrupt and is skipped")
    if steps:
        raise DataError(
            f"{folder}: none of the {len(steps)} checkpoints can be used; "
            "restore one from a copy, or choose another --output_dir for a new run"
        )
    return None


def is_checkpoint(path: str) -> bool:
    return os.path.isfile(os.path.join(path, _MANIFEST))


def load_weights(path: str) -> dict[str, torch.Tensor]:
    """Returns the weights in a checkpoint, {name: float32 tensor}; DataError if it is corrupt."""
    problem = _problem_of(path)
    if problem:
        raise DataError(f"{path}: {problem}: the checkpoint is corrupt; use another")
    return load_shared(path)["model"]["weights"]


def load_shared(path: str) -> State:
    """Returns the state that all ranks share, on the CPU."""
    # mmap: one copy in memory for all processes of a machine.
    shared = _read(os.path.join(path, _SHARED), mmap=True)
    if "flags" not in shared:
        raise DataError(
            f"{path}: written by an earlier version of train.py, without its flags; resume with "
            "that version, or use its model/ as --init_checkpoint for another --output_dir"
        )
    return shared


def load_own(path: str) -> State:
    """Returns this rank's state, on the CPU."""
    return _read(os.path.join(path, _own(dist.get_rank())))


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the states of this process's random number generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:  # a checkpoint of a CPU run has no "cuda"
        torch.cuda.set_rng_state(state["cuda"], device)


# --------------------------------------------------------------------------------------------------


def _name(step):
    return f"step-{step:08d}"


def _own(rank):
    return f"rank-{rank:05d}.pt"


def _hidden(folder, step):
    """The name while a checkpoint is being written or removed."""
    return os.path.join(folder, f".{_name(step)}.tmp")


def _steps(folder):
    """The steps of the checkpoints in a folder; unfinished ones have other names."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
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
        except RuntimeError as error:  # from torch's zip writer; its context is the disk's error
            raise OSError(str(error.__context__ or error)) from error
        file.flush()
        os.fsync(file.fileno())
    return [os.path.getsize(path), _digest(path)]


def _read(path, mmap=False):
    # weights_only: creates only tensors and plain values, so a file from elsewhere can run no code.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(path):
    with open(os.path.join(path, _MANIFEST)) as file:
        return json.load(file)


# A file is missing, or the manifest does not have the expected content.
_SIGNS_OF_CORRUPTION = (
    FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError,
)  # fmt: skip


def _problem_of(path):
    """Returns what is wrong with a checkpoint, or None; DataError if it cannot be read."""
    try:
        for name, (size, digest) in _read_manifest(path)["files"].items():
            file = os.path.join(path, name)
            if os.path.getsize(file) != size:
                return f"{name} has {os.path.getsize(file):,} bytes, expected {size:,}"
            if _digest(file) != digest:
                return f"{name}: SHA-256 mismatch"
    except _SIGNS_OF_CORRUPTION as error:
        return f"{type(error).__name__}: {error}"
    except OSError as error:
        raise DataError(
            f"{path}: the checkpoint cannot be read, which does not mean that it is corrupt: "
            f"{error}; run the same command again when the storage works, "
            "or move this folder away to resume from the checkpoint before it"
        ) from None
    return None


def _put_in_place(temporary, path):
    if os.path.isdir(path):  # the run resumed from an older one
        _rename_as_corrupt(path)
    sync_folder(temporary)
    os.rename(temporary, path)
    sync_folder(os.path.dirname(path))


def _rename_as_corrupt(path):
    """Renames a checkpoint that was found corrupt, perhaps because of a fault that did not last."""
    folder, name = os.path.split(path)
    aside = os.path.join(folder, f"corrupt-{name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    _warn(f"{path} was found corrupt and renamed {aside}: remove it to free its space")


def _remove_old(folder, newest, keep_max):
    """Removes all but the `keep_max` newest up to step `newest` (0: none), renames those after it.

    Errors are only reported: the newest checkpoint is in place, and the next save tries again.
    """
    steps = sorted(_steps(folder))
    kept = [step for step in steps if step <= newest]
    try:
        for step in steps[len(kept) :]:
            _rename_as_corrupt(os.path.join(folder, _name(step)))
        for step in kept[: max(0, len(kept) - keep_max)] if keep_max else []:
            # Renamed first: a folder that is only partly removed must not look like a checkpoint.
            os.rename(os.path.join(folder, _name(step)), _hidden(folder, step))
            shutil.rmtree(_hidden(folder, step))
    except OSError as error:
        _warn(f"{folder}: an old checkpoint could not be removed: {error}")


def _warn(message):
    print(f"warning: {message}", file=sys.stderr)
