"""Checkpoints of a run: whole or not there, checked when they are read, the newest valid one found without help.

    <folder>/step-00001200/shared.pt       what all ranks share: weights, optimizer, step, loader position
    <folder>/step-00001200/rank-00000.pt   what is a rank's own: random number generators
    <folder>/step-00001200/manifest.json   size and SHA-256 of the files above, written last

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

from bert.files import DataError, sync_folder

_MANIFEST, _SHARED = "manifest.json", "shared.pt"


def save(folder, step, shared, own, keep_max, group=None):
    """Writes the checkpoint of a step, then removes all but the newest `keep_max` (0: none is removed).

    shared: a dict, of which rank 0's is kept. own: a dict of this rank. Both hold tensors, numbers, strings, lists and dicts.
    group: a process group of the gloo backend. Raises DataError on every rank if one of them cannot write; older checkpoints
    stay.
    """
    rank, name = dist.get_rank(), _name(step)
    temporary = os.path.join(folder, f".{name}.tmp")
    problem = None
    if rank == 0:
        for unfinished in glob.glob(os.path.join(glob.escape(folder), ".step-*.tmp")):  # of a run that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        try:
            os.makedirs(temporary)
        except OSError as error:
            problem = f"rank 0: {error}"
    _raise_together(folder, name, problem, group)
    contents = {f"rank-{rank:05d}.pt": own} | ({_SHARED: shared} if rank == 0 else {})
    entries, error = {}, None
    try:
        for file_name, content in contents.items():
            entries[file_name] = _write(os.path.join(temporary, file_name), content)
    except OSError as failure:
        error = f"rank {rank}: {failure}"
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (entries, error), group)
    problem = "; ".join(error for _, error in gathered if error)
    if rank == 0 and not problem:
        try:
            manifest = {
                "step": step,
                "ranks": len(gathered),
                "files": {k: v for found, _ in gathered for k, v in found.items()},
            }
            with open(os.path.join(temporary, _MANIFEST), "w") as file:
                json.dump(manifest, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            _put_in_place(temporary, os.path.join(folder, name))
            _remove_old(folder, step, keep_max)
        except OSError as error:
            problem = f"rank 0: {error}"
    if problem and rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    _raise_together(folder, name, problem, group)


def _raise_together(folder, name, problem, group):
    """DataError on every rank if rank 0 has a problem, in words."""
    outcome = [problem]
    dist.broadcast_object_list(outcome, src=0, group=group)
    if outcome[0]:
        raise DataError(
            f"{os.path.join(folder, name)}: the checkpoint could not be written: {outcome[0]}; "
            "earlier checkpoints are as they were: make room, then give the same command again"
        )


def newest_valid(folder, group=None):
    """`find_newest_valid` by rank 0, for every rank."""
    found = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = find_newest_valid(folder)
        except DataError as error:
            found[1] = str(error)
    dist.broadcast_object_list(found, src=0, group=group)
    if found[1]:
        raise DataError(found[1])
    return found[0]


def find_newest_valid(folder):
    """Returns (path, number of ranks that wrote it) of the newest checkpoint whose files are as its manifest says, or None.

    Tells on stderr of those that are damaged. DataError if all are: to begin anew would destroy what is there.
    """
    for step in sorted(_steps(folder), reverse=True):
        path = os.path.join(folder, _name(step))
        problem = _problem_of(path)
        if problem is None:
            with open(os.path.join(path, _MANIFEST)) as file:
                return path, json.load(file)["ranks"]
        print(f"warning: {path}: {problem}: the checkpoint is damaged and passed over", file=sys.stderr)
    if _steps(folder):
        raise DataError(
            f"{folder}: none of the {len(_steps(folder))} checkpoints can be used; put one back, or choose another --output_dir for "
            "a new run"
        )
    return None


def is_checkpoint(path):
    return os.path.isfile(os.path.join(path, _MANIFEST))


def load_weights(path):
    """Returns the model's weights in a checkpoint, {parameter's name: float32 tensor}; DataError if it is damaged."""
    problem = _problem_of(path)
    if problem:
        raise DataError(f"{path}: {problem}: the checkpoint is damaged; take another")
    return load_shared(path)["model"]["weights"]


def load_shared(path):
    """Returns the dict that all ranks share, on the CPU."""
    return _read(os.path.join(path, _SHARED), mmap=True)  # one copy in memory for all processes of a machine


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
    if device.type == "cuda" and "cuda" in state:  # it is not in a checkpoint that was written on the CPU
        torch.cuda.set_rng_state(state["cuda"], device)


# ---------------------------------------------------------------------------------------------------------------


def _name(step):
    return f"step-{step:08d}"


def _steps(folder):
    """The steps of the checkpoints in a folder; unfinished ones have other names."""
    with contextlib.suppress(FileNotFoundError):
        return [int(name.removeprefix("step-")) for name in os.listdir(folder) if re.fullmatch(r"step-\d{8,}", name)]
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


def _problem_of(path):
    """What is wrong with a checkpoint, in words, or None."""
    try:
        with open(os.path.join(path, _MANIFEST)) as file:
            files = json.load(file)["files"]
        for name, (size, digest) in files.items():
            file = os.path.join(path, name)
            if os.path.getsize(file) != size:
                return f"{name} has {os.path.getsize(file):,} bytes, expected {size:,}"
            if _digest(file) != digest:
                return f"{name} does not have its SHA-256"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _put_in_place(temporary, path):
    shutil.rmtree(path, ignore_errors=True)  # of the same step, from a run that was resumed before it
    sync_folder(temporary)
    os.rename(temporary, path)
    sync_folder(os.path.dirname(path))


def _remove_old(folder, newest, keep_max):
    """Removes all but the `keep_max` newest up to step `newest`, and the damaged ones behind it from which a run went back."""
    steps = sorted(step for step in _steps(folder) if step <= newest)
    removed = [step for step in _steps(folder) if step > newest] + steps[: max(0, len(steps) - keep_max)]
    for step in removed if keep_max else []:
        path = os.path.join(folder, _name(step))
        hidden = os.path.join(folder, f".{_name(step)}.tmp")
        os.rename(path, hidden)  # so that half of it never bears the name
        shutil.rmtree(hidden)
