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
import subprocess
import sys
import time
from unittest import mock

import torch.distributed as dist
from conftest import ROOT

import train as train_script
from bert.common import cli
from bert.training.distributed import control_group

STEPS = 4  # optimizer steps, unless the flags say otherwise
TORCHRUN = os.path.join(os.path.dirname(sys.executable), "torchrun")


def flags(data, output, *more):
    return [
        f"--bert_config_file={data}/config.json", f"--output_dir={output}",
        f"--tfrecord_train={data}/train", f"--idx_train={data}/idx/train",
        f"--tfrecord_eval={data}/eval", f"--idx_eval={data}/idx/eval", "--train_batch_size=16",
        "--learning_rate=1e-2", f"--num_train_steps={STEPS}", "--num_warmup_steps=2",
        "--num_threads=1", *more,
    ]  # fmt: skip


def torchrun(processes, script, *arguments):
    """Runs a script under torchrun; returns the process that has ended."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # else torchrun warns
    return subprocess.run(
        [TORCHRUN, "--standalone", f"--nproc_per_node={processes}", script, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, env=environment,
    )  # fmt: skip


def train_here(data, output, *more, check=True):
    """Does what `python3 train.py` does in this process, which has imported the frameworks already.

    Returns what subprocess.run would: the exit code, stdout and stderr.
    """
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "unraisablehook"),
        handlers_of_signals_kept(),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            cli.run(lambda: train_script.main(flags(data, output, *more)))
        except SystemExit as end:
            code = end.code or 0
    if isinstance(code, str):
        print(code, file=stderr)
        code = 1
    gc.collect()  # the model of a run that ended with an error, before its process group
    if dist.is_initialized():
        dist.destroy_process_group()
    control_group.cache_clear()
    assert not check or code == 0, stdout.getvalue() + stderr.getvalue()
    return subprocess.CompletedProcess("train.py", code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def handlers_of_signals_kept():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train(data, output, *more, processes=1):
    """Runs train.py; returns (step rows, evaluation rows) of its metrics.jsonl."""
    process = torchrun(processes, "train.py", *flags(data, output, *more))
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stderr == ""  # no banners
    return steps_of(output), evaluations_of(output)


def start(data, output, *more, program=(sys.executable, "train.py"), **environment):
    return subprocess.Popen(
        [*program, *flags(data, output, *more)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def wait_for(condition, *processes):
    """Waits until `condition()` is true; fails if one of the processes ends before."""
    while not condition():
        ended = [process for process in processes if process.poll() is not None]
        assert not ended or condition(), [process.communicate() for process in ended]
        time.sleep(0.02)


def train_several(data, runs, processes):
    """Trains several runs, {output folder: its flags}, in turn in one set of processes; flags may
    be those of tests/colossalai_on_cpu.py too.
    """
    arguments = []
    for output, more in runs.items():
        arguments += [*flags(data, output, *more), "--"]
    process = torchrun(processes, "tests/colossalai_on_cpu.py", *arguments)
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
