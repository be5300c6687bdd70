"""Processes that are asked to stop, that fail, hang or vanish: what the others make of it."""

import itertools
import json
import os
import re
import signal
import socket

import pytest
from conftest import assert_refused
from training_runs import (
    flags,
    handlers_of_signals_kept,
    metrics,
    start,
    start_ranks,
    start_script,
    start_torchrun,
    train_here,
    wait_for,
)

import bert.common.quiet_imports  # noqa: F401  before the frameworks

# isort: split
import torch
import torch.distributed as dist

from bert.common.files import DataError
from bert.training import distributed, loop
from bert.training.flag_checks import check
from bert.training.launch import lock_output_dir, readable_errors
from train import parse_flags

pytestmark = pytest.mark.slow


def test_signals_save_and_stop(training_data, tmp_path):
    """Ctrl-C, and those that a cluster sends before it takes the machine away; the same command
    resumes.
    """
    folder = tmp_path / "run/checkpoints"
    saved = lambda: sorted(path.name for path in folder.glob("step-*"))  # noqa: E731
    more = ("--num_train_steps=100000", "--save_checkpoints_steps=7", "--keep_checkpoint_max=1")
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        before = saved()
        process = start(training_data, tmp_path / "run", *more)
        wait_for(lambda: saved()[-1:] > before[-1:], process)  # under way
        process.send_signal(signum)
        process.send_signal(signum)  # torchrun's, after the scheduler's
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        (checkpoint,) = saved()
        step = int(checkpoint.removeprefix("step-"))
        assert (
            f"stopped by {signum.name} after step {step:,}; the same command resumes it" in output
        )
        assert [
            json.loads(line)["step"] for line in metrics(tmp_path / "run").splitlines()
        ] == list(range(1, step + 1))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_passes_signals_on(training_data, tmp_path, signum):
    """It ends with a stack trace of its own, but its processes save."""
    more = ("--num_train_steps=100000", "--save_checkpoints_steps=7")
    process = start_torchrun(
        "--nproc_per_node=2", "train.py", *flags(training_data, tmp_path / "run", *more)
    )
    wait_for((tmp_path / "run/checkpoints/step-00000007").exists, process)
    process.send_signal(signum)
    output, _ = process.communicate()
    (step,) = re.findall(f"stopped by {signum.name} after step ([0-9,]+);", output)
    assert (
        tmp_path / f"run/checkpoints/step-{int(step.replace(',', '')):08d}/manifest.json"
    ).exists()


def test_signals_before_the_first_step_stop_too(training_data, tmp_path, monkeypatch):
    def lock_and_send_signal(folder):
        os.kill(os.getpid(), signal.SIGUSR1)
        return lock_output_dir(folder)

    monkeypatch.setattr(loop, "lock_output_dir", lock_and_send_signal)
    process = train_here(training_data, tmp_path / "run", "--num_train_steps=100000")
    assert "stopped by SIGUSR1 after step 0; the same command resumes it" in process.stdout
    assert metrics(tmp_path / "run") == ""


REPEATED_SIGNALS = """
import os, signal
from bert.training import distributed

distributed.StopRequest()
for now in (100.0, 109.9, 110.1):
    distributed.time.monotonic = lambda: now
    os.kill(os.getpid(), signal.SIGTERM)
    print("at work", flush=True)
"""


def test_signal_repeated_later_ends_at_once(tmp_path):
    script = tmp_path / "repeated_signals.py"
    script.write_text(REPEATED_SIGNALS)
    process = start_script(script).finished()
    assert (process.stdout, process.returncode) == ("at work\n" * 2, -signal.SIGTERM)


def steps_that_ask(monkeypatch, seconds, seconds_of_other, number=200):
    """The steps after which ranks ask each other, if theirs take so long on each one's clock."""
    asked, clock, signal_of_other = [], [100.0], [0]

    def all_reduce(values, operation, group):
        assert operation == dist.ReduceOp.MAX
        asked.append(step)
        others = torch.tensor([signal_of_other[0], seconds_of_other], dtype=values.dtype)
        values[:] = torch.maximum(values, others)

    monkeypatch.setattr(distributed, "control_group", lambda: None)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(distributed.time, "monotonic", lambda: clock[0])
    request = distributed.StopRequest()
    for step in range(number):
        clock[0] += seconds
        assert request.signal_on_any_rank() is None
    signal_of_other[0] = signal.SIGUSR1
    assert "SIGUSR1" in [request.signal_on_any_rank() for _ in range(request.MAX_STEPS)]
    return [step for step in asked if step < number - 1]


@pytest.mark.parametrize(
    "seconds, of_other, distance", [(0.125, 0.125, 8), (0.125, 0.5, 2), (3, 3, 1), (0, 0, 50)]
)
def test_ranks_ask_each_other_once_a_second(monkeypatch, seconds, of_other, distance):
    """At the same steps, whatever each one's clock says; at the start more often."""
    with handlers_of_signals_kept():
        asked = steps_that_ask(monkeypatch, seconds, of_other)
        assert asked == steps_that_ask(monkeypatch, of_other, seconds)
    distances = [after - before for before, after in itertools.pairwise([-1, *asked])]
    assert distances[:2] == [1, min(2, distance)]
    assert max(distances) == distance == distances[-1]
    assert all(after <= 2 * before for before, after in itertools.pairwise(distances))


def start_two(data, output, *more, rank_1=()):
    """rank_1: flags that it alone is given."""
    both = flags(data, output, *more)
    return start_ranks("train.py", both, [*both, *rank_1])


@pytest.fixture
def two_ranks(training_data, tmp_path):
    """Returns a function that starts two processes of one run, and waits until they are under
    way.
    """
    started = []

    def start_and_wait(name, *more):
        more = ("--num_train_steps=100000", "--save_checkpoints_steps=2", *more)
        ranks = start_two(training_data, tmp_path / name, *more)
        started.extend(ranks)
        wait_for((tmp_path / name / "checkpoints/step-00000002").exists, *ranks)
        return ranks

    yield start_and_wait
    for process in started:
        process.kill()


def test_rank_that_waits_too_long_says_so(two_ranks):
    """The timeout is long enough for a rank that starts slowly on a busy machine."""
    left = []
    for rank in (0, 1):
        ranks = two_ranks(f"run-{rank}", "--collective_timeout=30")
        ranks[1 - rank].send_signal(signal.SIGSTOP)
        left.append(ranks[rank])
    for waiting in left:  # both at the same time
        _, errors = waiting.communicate()
        assert waiting.returncode == 1
        assert "waited longer than --collective_timeout for another rank" in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_that_loses_the_other_says_so_in_a_line(two_ranks, rank):
    ranks = two_ranks("run")
    left, lost = ranks[rank], ranks[1 - rank]
    lost.kill()
    _, errors = left.communicate()
    assert left.returncode == 1
    assert "lost the connection to another rank" in errors and len(errors.splitlines()) == 1


def test_two_runs_in_one_folder_are_refused(training_data, tmp_path, monkeypatch):
    first = start(training_data, tmp_path / "run", "--num_train_steps=100000")
    wait_for((tmp_path / "run/metrics.jsonl").exists, first)
    monkeypatch.setattr(loop, "_run_steps", lambda *arguments: pytest.fail("trains there too"))
    process = train_here(training_data, tmp_path / "run", "--num_train_steps=100000", check=False)
    assert_refused(process, f"{tmp_path}/run: another run is using this folder")
    first.kill()
    first.communicate()


def test_error_of_the_first_rank_is_everybodys(training_data, tmp_path):
    """Only rank 0 writes; the others are not left to wait for it, or to guess why it has gone."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").touch()  # where a folder should be
    for rank, process in enumerate(start_two(training_data, run)):
        _, errors = process.communicate()
        assert process.returncode == 1
        assert (
            errors
            == f"error{' on rank 1' if rank else ''}: [Errno 17] File exists: '{run}/tensorboard'\n"
        )


@pytest.mark.parametrize(
    "errors, message",
    [
        ((None, "gone", "gone", "full"), "rank 1, 2: gone; rank 3: full"),
        (("full", None, None, None), "full"),
        (("full",) * 4, "rank 0, 1, 2, 3: full"),
    ],
)  # fmt: skip
def test_the_same_error_of_several_ranks_is_reported_once(monkeypatch, errors, message):
    def gather(found, own, group):
        found[:] = errors

    monkeypatch.setattr(dist, "get_world_size", lambda: len(errors))
    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(distributed, "control_group", lambda: None)
    with pytest.raises(DataError, match=f"^{message}$"), distributed.shared_errors():
        pass


def test_folder_that_is_not_shared_is_reported_at_the_start(process_group, monkeypatch, tmp_path):
    """As on the local disks of two machines, of which this one is not rank 0's."""
    folder = tmp_path / "run"
    with lock_output_dir(folder):
        assert os.listdir(folder) == [".lock"]
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    with (
        pytest.raises(
            DataError, match=f"{folder}: on .* choose an --output_dir that all machines share"
        ),
        lock_output_dir(folder),
    ):
        pass
    assert os.listdir(folder) == [".lock"]


def test_other_flags_and_data_on_a_rank_are_reported_at_the_start(training_data, tmp_path):
    fewer = (
        f"--tfrecord_train={training_data}/train/part-00000",
        f"--idx_train={training_data}/idx/train/part-00000.idx",
    )
    for process in start_two(
        training_data, tmp_path / "run", rank_1=("--learning_rate=0.5", *fewer)
    ):
        _, errors = process.communicate()
        assert process.returncode == 1 and len(errors.splitlines()) == 1
        assert (
            f"--learning_rate: 0.5 on rank 1 ({socket.gethostname()}), 0.01 on rank 0; "
            f"training files: {{'files': 1,"
        ) in errors
        assert "--tfrecord_train" not in errors and "evaluation" not in errors
    assert not (tmp_path / "run/flags.json").exists()


def test_process_that_has_half_of_its_variables_is_refused(training_data, tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        DataError,
        match=(
            "RANK is set, but not LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT: "
            "use torchrun"
        ),
    ):
        check(parse_flags(flags(training_data, tmp_path / "run")), 2)


# Seen of two processes that cannot reach each other's address.
CONNECTION_REFUSED = (
    "Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] no error"
)


@pytest.mark.parametrize(
    "raised, message",
    [
        (
            dist.DistBackendError(
                "NCCL error in: x, remote process exited or there was a network error"
            ),
            "lost the connection",
        ),
        (dist.DistNetworkError("Connection reset by peer"), "lost the connection"),
        (
            RuntimeError(CONNECTION_REFUSED),
            "no way from this machine to another rank's.* set GLOO_SOCKET_IFNAME to the network",
        ),
        (
            dist.DistStoreError("wait timeout after 1800000ms, keys: /x"),
            "waited longer than --collective_timeout",
        ),
        (
            dist.DistNetworkError("The client socket has timed out after 30s"),
            "waited longer than --collective_timeout",
        ),
    ],
)
def test_what_torch_says_of_lost_ranks(raised, message):
    with pytest.raises(DataError, match=message), readable_errors():
        raise raised


def test_other_errors_of_torch_stay_what_they_are():
    with pytest.raises(dist.DistBackendError, match="invalid usage"), readable_errors():
        raise dist.DistBackendError("NCCL error in: x, invalid usage")
