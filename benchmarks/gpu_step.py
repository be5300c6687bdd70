#!/usr/bin/env python3
"""The table of training steps on a GPU in docs/performance.md: ours and Hugging Face's, BERT-base
and BERT-large.

python3 benchmarks/gpu_step.py

Needs a GPU, torch 2.5 or newer and transformers 4.51 or newer, and nothing else: no data, and not
./setup.sh. Takes about 5 minutes. First checks a step of each program against float32 on the CPU:
the loss, the gradients, LAMB's update. Then times steps in bf16 with dropout, on made-up examples
of 512 positions, of which 254 are tokens on average, with up to 76 predictions, as in MLPerf's
data. Writes all figures to gpu_step.json.

"Hugging Face" is what its documentation leads to: `BertForPreTraining` with labels, which computes
padding and the logits of all positions, and torch's fused AdamW. The other programs are this
project's, with its LAMB.
"""

import copy
import gc
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bert.common import cli, quiet_imports  # noqa: F401  before the frameworks
from bert.common.files import DataError, atomic_writer

# isort: split
try:
    import torch
    from transformers import BertConfig, BertForPreTraining
except ImportError as error:
    sys.exit(f"error: {error.name} is not installed: pip install 'torch>=2.5' 'transformers>=4.51'")

from bert.training.flops import peak_flops, training_flops
from bert.training.model import (
    Batch,
    build_model,
    compile_layers,
    leave_out_padding,
    load_config,
    loss_sums,
    predict,
    with_indices,
)
from bert.training.optimization import Lamb, parameter_groups

PROGRAMS = ("Hugging Face", "dense", "unpadded", "dense, compiled", "unpadded, compiled")
MINIMUM_VERSIONS = {"torch": (2, 5), "transformers": (4, 51)}
NUM_BATCHES = 4  # different ones, so that the numbers of tokens differ
UNTIMED_STEPS = 5  # at most: to warm up, and to measure the host's time
# Largest relative differences from float32 on the CPU: of the loss and of all gradients together.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
UPDATE_TOLERANCE = 1e-5  # of the weights' changes, from the same gradients


# --------------------------------------------------------------------------------------------------
# Examples


def make_batches(
    count: int, batch_size: int, seq_length: int, config: BertConfig, seed: int
) -> list[Batch]:
    """Returns batches on the CPU, in the loader's form; "labels" are Hugging Face's, int64 [B, S].

    A fifth of the examples has the full length, the others are spread evenly over the lengths up to
    0.72 of it: at 512 positions the mean is 254, as in MLPerf's data.
    """
    generator = torch.Generator().manual_seed(seed)
    num_examples = count * batch_size
    quantiles = (torch.arange(num_examples) + 0.5) / num_examples
    shorter = 10 + quantiles / 0.8 * (0.72 * seq_length - 10)
    lengths = torch.where(quantiles < 0.8, shorter, seq_length).long()
    lengths = lengths[torch.randperm(num_examples, generator=generator)]
    examples = [_make_example(int(n), seq_length, config, generator) for n in lengths]
    batches = []
    for first in range(0, num_examples, batch_size):
        rows = examples[first : first + batch_size]
        batches.append({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
    return batches


def _make_example(length, seq_length, config, generator):
    max_predictions = max(1, 76 * seq_length // 512)
    num_masked = min(max(1, round(0.15 * length)), max_predictions)
    positions = (torch.randperm(length - 1, generator=generator)[:num_masked] + 1).sort().values
    ids = torch.randint(1000, config.vocab_size, (seq_length,), generator=generator)
    is_token = (torch.arange(seq_length) < length).long()
    labels = torch.full((seq_length,), -100)
    labels[positions] = ids[positions]
    masked = ids.clone()
    masked[positions] = 103  # [MASK]

    def padded(values):
        return torch.nn.functional.pad(values, (0, max_predictions - num_masked))

    return {
        "input_ids": masked * is_token, "input_mask": is_token,
        "segment_ids": is_token * (torch.arange(seq_length) >= length // 2),
        "masked_lm_positions": padded(positions), "masked_lm_ids": padded(ids[positions]),
        "masked_lm_weights": padded(torch.ones(num_masked)),
        "next_sentence_labels": torch.randint(2, (1,), generator=generator), "labels": labels,
    }  # fmt: skip


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch as our programs take it."""
    return with_indices({name: tensor.to(device) for name, tensor in batch.items()})


# --------------------------------------------------------------------------------------------------
# Programs


@dataclass
class Program:
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[torch.nn.Module, Batch], torch.Tensor]

    def forward(self, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
        """Returns the loss, float32 []."""
        device = batch["input_ids"].device.type
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return self.loss(self.model, batch)


def build(name: str, config: BertConfig, device: torch.device) -> Program:
    """Returns one of PROGRAMS, with float32 weights."""
    torch.manual_seed(1)
    if name == "Hugging Face":
        with device:
            model = BertForPreTraining(config)
        fused = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        return Program(model, fused, hugging_face_loss)
    with device:
        model = build_model(config)
    if "unpadded" in name:
        leave_out_padding(model)
    if "compiled" in name:
        torch.compiler.reset()  # what was compiled for another size
        compile_layers(model)
    lamb = Lamb(parameter_groups(model, 0.01), lr=1e-4, max_grad_norm=1.0)
    return Program(model, lamb, our_loss)


def hugging_face_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["input_mask"],
        token_type_ids=batch["segment_ids"],
        labels=batch["labels"],
        next_sentence_label=batch["next_sentence_labels"],
    ).loss


def our_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    masked_lm, next_sentence = loss_sums(predict(model, batch), batch)
    return masked_lm / batch["masked_lm_weights"].sum() + next_sentence / len(batch["input_ids"])


# --------------------------------------------------------------------------------------------------
# The check


def check(
    config: BertConfig, names: list[str], batch: Batch, device: torch.device
) -> list[dict[str, Any]]:
    """Compares a step of each program with float32 on the CPU; DataError if one differs.

    config: with few layers, as the CPU has to compute them. Returns the differences.
    """
    config = copy.deepcopy(config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    cpu = torch.device("cpu")
    reference = build("dense", config, cpu)
    weights = {name: tensor.clone() for name, tensor in reference.model.state_dict().items()}
    expected_loss, expected = _loss_and_gradients(reference, on_device(batch, cpu), torch.float32)
    results = []
    for name in names:
        # Compiled code only in the precision that is timed: to compile takes long.
        for dtype in [torch.bfloat16] if "compiled" in name else TOLERANCES:
            program = build(name, config, device)
            program.model.load_state_dict(weights)
            loss, gradients = _loss_and_gradients(program, on_device(batch, device), dtype)
            found = {
                "loss": abs(loss / expected_loss - 1),
                "gradients": _difference(gradients, expected),
            }
            allowed = dict.fromkeys(found, TOLERANCES[dtype])
            if name != "Hugging Face":
                found["update"] = _difference_of_updates(program, config, weights)
                allowed["update"] = UPDATE_TOLERANCE
            results.append({"program": name, "dtype": str(dtype), **found})
            for what, difference in found.items():
                if not difference <= allowed[what]:
                    raise DataError(
                        f"{name}, {dtype}: {what} differ from float32 on the CPU by "
                        f"{difference:.2e} of it, expected {allowed[what]:.0e} at most"
                    )
    return results


def _loss_and_gradients(program, batch, dtype):
    """Returns the loss and {parameter: gradient on the CPU}."""
    program.model.train()
    loss = program.forward(batch, dtype)
    loss.backward()
    parameters = program.model.named_parameters()
    return loss.item(), {name: parameter.grad.cpu() for name, parameter in parameters}


def _difference_of_updates(program, config, weights):
    """Makes two updates from the gradients that a program has, and the same ones on the CPU."""
    cpu = build("dense", config, torch.device("cpu"))
    cpu.model.load_state_dict(weights)
    parameters = dict(program.model.named_parameters())
    gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    for _ in range(2):
        for model in (program.model, cpu.model):
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name].to(parameter.device, copy=True)
        program.optimizer.step()
        cpu.optimizer.step()
    changes = (
        {name: parameter.detach().cpu() - weights[name] for name, parameter in named}
        for named in (parameters.items(), cpu.model.named_parameters())
    )
    return _difference(*changes)


def _difference(found, expected):
    """The norm of the difference of all tensors, relative to that of the expected ones."""
    squares = sum(
        (found[name] - tensor).double().square().sum() for name, tensor in expected.items()
    )
    norms = sum(tensor.double().square().sum() for tensor in expected.values())
    return (squares / norms).sqrt().item()


# --------------------------------------------------------------------------------------------------
# Timing


def measure(
    name: str, config: BertConfig, batches: list[Batch], steps: int, device: torch.device
) -> dict[str, Any]:
    """Returns the figures of a program: times in ms, memory in GB."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    program = build(name, config, device)
    program.model.train()
    batches = [on_device(batch, device) for batch in batches]
    for number in range(min(steps, UNTIMED_STEPS)):
        run_step(program, batches[number % len(batches)])
    synchronize(device)
    # Without a wait between steps, so that the host can run ahead of the GPU, as in training.
    marks = [run_step(program, batches[number % len(batches)]) for number in range(steps)]
    synchronize(device)
    step_ms = ms_between(marks[0][0], marks[-1][-1]) / steps
    parts = zip(
        *([ms_between(*pair) for pair in zip(step_marks, step_marks[1:])] for step_marks in marks)
    )
    host = []
    for number in range(min(steps, UNTIMED_STEPS)):
        synchronize(device)
        started = time.perf_counter()
        run_step(program, batches[number % len(batches)])
        host.append(1e3 * (time.perf_counter() - started))
    kernels = attention_kernels(program, batches[0], device)

    lengths = [int(n) for batch in batches for n in batch["input_mask"].sum(1)]
    predictions = [int(n) for batch in batches for n in batch["masked_lm_weights"].sum(1)]
    sequences_per_s = len(batches[0]["input_ids"]) / step_ms * 1e3
    flops = statistics.mean(
        training_flops(config, *example) for example in zip(lengths, predictions)
    )
    peak = peak_flops(torch.cuda.get_device_name(device)) if is_cuda else None
    return {
        "program": name,
        "step_ms": step_ms,
        **dict(zip(("forward_ms", "backward_ms", "optimizer_ms"), map(statistics.median, parts))),
        "host_ms": statistics.median(host),
        "sequences_per_s": sequences_per_s,
        "tokens_per_s": sequences_per_s * statistics.mean(lengths),
        "mfu": sequences_per_s * flops / peak if peak else None,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if is_cuda else None,
        "attention_kernels": kernels,
    }


def run_step(program: Program, batch: Batch) -> list[Any]:
    """Makes a step in bf16; returns marks of its start and of the ends of its three parts."""
    device = batch["input_ids"].device
    marks = [mark(device)]
    program.optimizer.zero_grad()
    loss = program.forward(batch, torch.bfloat16)
    marks.append(mark(device))
    loss.backward()
    marks.append(mark(device))
    program.optimizer.step()
    marks.append(mark(device))
    return marks


def mark(device: torch.device) -> Any:
    """Returns a point in time: on a GPU, of its own work."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def ms_between(start: Any, end: Any) -> float:
    return 1e3 * (end - start) if isinstance(start, float) else start.elapsed_time(end)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def attention_kernels(program: Program, batch: Batch, device: torch.device) -> list[str]:
    """Returns the names of the GPU's attention kernels in a step; on the CPU, torch's operators."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    kind = torch.autograd.DeviceType.CPU
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        kind = torch.autograd.DeviceType.CUDA
    with torch.profiler.profile(activities=activities) as profile:
        run_step(program, batch)
        synchronize(device)
    names = {event.name for event in profile.events() if event.device_type == kind}
    # Some names are the text of a C++ template.
    found = (re.search(r"\w*(flash|fmha|attention|AttentionKernel)\w*", name) for name in names)
    return sorted({match[0] for match in found if match})


# --------------------------------------------------------------------------------------------------


def versions(device: torch.device) -> dict[str, Any]:
    """Returns what a reader needs to judge the figures: versions and the GPU's name."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in ("torch", "transformers", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["gpu"] = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return found


def check_requirements(device: torch.device) -> None:
    """DataError for packages that are too old and for a GPU that cannot do this."""
    for package, minimum in MINIMUM_VERSIONS.items():
        version = importlib.metadata.version(package)
        if tuple(map(int, version.split(".")[:2])) < minimum:
            needed = ".".join(map(str, minimum))
            raise DataError(f"{package} {version} is installed, expected {needed} or newer")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError("--device=cuda: torch finds no GPU; --device=cpu checks the program itself")
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        name = torch.cuda.get_device_name()
        raise DataError(f"{name} computes no bf16; needs an A100 or newer")


def row(size: str, result: dict[str, Any], first_ms: float | None) -> str:
    """Returns a line of the table. first_ms: the step of Hugging Face."""
    cells = [size, result["program"]]
    if "step_ms" not in result:
        return "| " + " | ".join([*cells, result["error"]]) + " |"
    times = ("step_ms", "forward_ms", "backward_ms", "optimizer_ms", "host_ms")
    cells += [f"{result[name]:.1f}" for name in times]
    cells += [f"{result['sequences_per_s']:.0f}", f"{result['tokens_per_s']:,.0f}"]
    cells.append("" if result["mfu"] is None else f"{result['mfu']:.1%}")
    memory = result["peak_memory_gb"]
    cells.append("" if memory is None else f"{memory:.1f}")
    cells.append("" if first_ms is None else f"{first_ms / result['step_ms']:.2f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = cli.parser_from_docstring(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--sizes", nargs="+", choices=("tiny", "base", "large"), default=["base", "large"],
        help="of configs/bert_*.json (default: base large)",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=48, help="(default: %(default)s)")
    parser.add_argument("--seq_length", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default: %(default)s)")
    cli.add_boolean_flag(parser, "compile", True, "the programs with torch.compile too")
    parser.add_argument("--output", default="gpu_step.json", help="(default: %(default)s)")
    flags = parser.parse_args()
    device = torch.device(flags.device)
    check_requirements(device)
    names = [name for name in PROGRAMS if flags.compile or "compiled" not in name]
    configs = {
        size: load_config(os.path.join(ROOT, "configs", f"bert_{size}.json"))
        for size in flags.sizes
    }
    report: dict[str, Any] = {"versions": versions(device), "settings": vars(flags)}
    print(" ".join(f"{name} {version}" for name, version in report["versions"].items()))

    small = copy.deepcopy(configs[flags.sizes[0]])
    small.num_hidden_layers = 2
    (batch,) = make_batches(1, 2, flags.seq_length, small, seed=0)
    report["check"] = check(small, names, batch, device)
    for result in report["check"]:
        differences = [f"{what} {result[what]:.1e}" for what in list(result)[2:]]
        print(f"check: {result['program']}, {result['dtype']}: {', '.join(differences)}")

    print(
        "\n| BERT | program | ms a step | forward | backward | optimizer | host | sequences/s "
        "| tokens/s | MFU | peak GB | speed-up |\n|" + "---|" * 12
    )
    report["results"] = []
    for size, config in configs.items():
        batches = make_batches(NUM_BATCHES, flags.batch_size, flags.seq_length, config, seed=1)
        first_ms = None
        for name in names:
            try:
                result = measure(name, config, batches, flags.steps, device)
            except torch.OutOfMemoryError:
                result = {"program": name, "error": "the GPU's memory is too small"}
            if name == PROGRAMS[0]:
                first_ms = result.get("step_ms")
            print(row(size, result, first_ms), flush=True)
            report["results"].append({"size": size, **result})
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    for result in report["results"]:
        if kernels := result.get("attention_kernels"):
            print(f"attention of {result['size']}, {result['program']}: {', '.join(kernels)}")
    with atomic_writer(flags.output) as file:
        file.write(json.dumps(report, indent=1).encode())
    print(f"{flags.output}: all of it, and the versions")


if __name__ == "__main__":
    cli.run(main)
