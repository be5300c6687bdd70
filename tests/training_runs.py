"""Running train.py in tests as users do, on the examples of the fixture `training_data`, and
reading what a run left.
"""

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from unittest import mock

import torch.distributed as dist

import bert.training.model_card
import bert.training.run
import train as train_script
from bert.common import cli
from bert.training.distributed import control_group
from tests.script_server import script_server, wait_for

STEPS = 4  # optimizer steps, unless the flags say otherwise
TORCHRUN = os.path.join(os.path.dirname(sys.executable), "torchrun")


def flags(data, output, *more):
    return [
        f"--bert_config_file={data}/config.json", f"--vocab_file={data}/vocab.txt",
        f"--output_dir={output}",
        f"--tfrecord_train={data}/train", f"--idx_train={data}/idx/train",
        f"--tfrecord_eval={data}/eval", f"--idx_eval={data}/idx/eval", "--train_batch_size=16",
        "--learning_rate=1e-2", f"--num_train_steps={STEPS}", "--num_warmup_steps=2",
        "--num_threads=1", *more,
    ]  # fmt: skip


def torchrun(processes, script, *arguments):
    """Runs a script under torchrun; returns the process that has ended."""
    return start_torchrun(f"--nproc_per_node={processes}", script, *arguments).finished()


def start_torchrun(*arguments):
    """arguments: torchrun's, the script, the script's."""
    return start_script(TORCHRUN, "--standalone", *arguments)


def train_here(data, output, *more, check=True, draws=False):
    """Does what `python3 train.py` does in this process, which has imported the frameworks already;
    but unless it `draws`, without curves, which take longer than the run.

    Returns what subprocess.run would: the exit code, stdout and stderr.
    """
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "unraisablehook"),
        contextlib.nullcontext() if draws else no_curves(),
        handlers_of_signals_kept(),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            cli.run(lambda: train_script.main(flags(data, output, *more)))
        except SystemExit as end:
            code = end.code or 0
    gc.collect()  # the model of a run that ended with an error, before its process group
    if dist.is_initialized():
        dist.destroy_process_group()
    control_group.cache_clear()
    assert not check or code == 0, stdout.getvalue() + stderr.getvalue()
    return subprocess.CompletedProcess("train.py", code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def no_curves():
    with (
        mock.patch.object(bert.training.run.Run, "_draw_curves"),
        mock.patch.object(bert.training.model_card, "plot_curves"),
    ):
        yield


@contextlib.contextmanager
def handlers_of_signals_kept():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train(data, output, *more, processes=1):
    """Runs train.py as a user does; returns (step rows, evaluation rows) of its metrics.jsonl."""
    process = torchrun(processes, "train.py", *flags(data, output, *more))
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == ""  # no banners
    return steps_of(output), evaluations_of(output)


def start_script(script, *arguments, **options):
    """Starts a script in a process that need not import the frameworks, which takes 9 s of CPU."""
    return script_server("tests.warm_training").start(script, *arguments, whole_end=True, **options)


def start(data, output, *more):
    """Starts train.py in a process of its own."""
    return start_script("train.py", *flags(data, output, *more))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(script, *arguments_of_rank):
    """Starts the processes of one run as a cluster does it, without torchrun. arguments_of_rank: a
    list for each.
    """
    number = str(len(arguments_of_rank))
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": number,
        "LOCAL_WORLD_SIZE": number,
    }  # fmt: skip
    return [
        start_script(
            script, *arguments, environment=shared | {"RANK": str(n), "LOCAL_RANK": str(n)}
        )
        for n, arguments in enumerate(arguments_of_rank)
    ]


def run_ranks(processes, script, *arguments):
    """Runs a script in several processes. Returns what subprocess.run would, the output of all
    together; where one fails, the others are killed.
    """
    ranks = start_ranks(script, *[arguments] * processes)
    wait_until_ended(ranks)
    code = next((rank.returncode for rank in ranks if rank.returncode), 0)
    for rank in ranks:
        rank.kill()
    stdout, stderr = map("".join, zip(*(rank.communicate() for rank in ranks)))
    return subprocess.CompletedProcess(script, code, stdout, stderr)


def wait_until_ended(processes):
    """Until all have ended, or one of them with an error."""
    wait_for(
        lambda: (
            any(process.poll() for process in processes)
            or all(process.poll() == 0 for process in processes)
        )
    )


def torchrun_agents(agents, script, *arguments):
    """Runs a script under as many agents of torchrun, one process each, as on as many machines.
    Returns them when they have ended; where one fails, the others are ended.
    """
    common = (f"--nnodes={agents}", "--master_addr=127.0.0.1", f"--master_port={free_port()}")
    started = [
        start_script(TORCHRUN, *common, f"--node_rank={rank}", script, *arguments)
        for rank in range(agents)
    ]
    wait_until_ended(started)
    for agent in started:
        agent.send_signal(signal.SIGTERM)
    return [agent.finished() for agent in started]


def train_apart(data, output, *more, processes=1):
    """Runs train.py in processes of their own."""
    process = run_ranks(processes, "train.py", *flags(data, output, *more))
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == ""


def train_several(data, runs, processes):
    """Trains several runs, {output folder: its flags}, in turn in one set of processes; flags may
    be those of tests/colossalai_on_cpu.py too.
    """
    arguments = []
    for output, more in runs.items():
        arguments += [*flags(data, output, *more), "--"]
    process = run_ranks(processes, "tests/colossalai_on_cpu.py", *arguments)
    assert process.returncode == 0, process.stdout + process.stderr
    return process


def rows_of(run):
    return [json.loads(line) for line in open(f"{run}/metrics.jsonl")]


def steps_of(run):
    return [row for row in rows_of(run) if "loss" in row]


def evaluations_of(run):
    return [row for row in rows_of(run) if "masked_lm_accuracy" in row]


def losses(rows):
    return [(row["mlm_loss"], row["nsp_loss"], row["grad_norm"]) for row in rows]


def count_records(index):
    return len(index.read_text().splitlines())


def copy_of_run_as_it_was(run, step, folder):
    """What a run had left if it had been killed some steps after its checkpoint of `step`."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("flags.json", "metrics.jsonl", "mlperf.log"):
        shutil.copy(run / name, folder / name)
    shutil.copytree(run / f"checkpoints/step-{step:08d}", folder / f"checkpoints/step-{step:08d}")
    return folder


def metrics(folder):
    return (folder / "metrics.jsonl").read_text()


def weights(folder):
    return (folder / "model/model.safetensors").read_bytes()
