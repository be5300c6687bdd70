#!/usr/bin/env python3
"""The table of training steps in docs/performance.md: forward, backward, update on one CPU thread.

python3 benchmarks/training_step.py

Compares Hugging Face's BertForPreTraining with the logits of all positions, ours with those of the
predictions only (--unpad=False), and ours without padding, with the same weights, examples and
LAMB, for a BERT of 4 layers of 256 and one of BERT-base's shapes with fewer layers. Examples are
random, 512 positions of which 254 are tokens on average, as in MLPerf's data. Checks that the
losses are equal. Takes about 3 minutes.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bert.common import quiet_imports  # noqa: F401  before the frameworks

# isort: split
import torch
from transformers import BertConfig, BertForPreTraining

from bert.training.launch import keep_freed_memory
from bert.training.model import (
    Batch,
    Logits,
    build_model,
    leave_out_padding,
    loss_sums,
    predict,
    with_indices,
)
from bert.training.optimization import Lamb, parameter_groups

SEQ_LENGTH, PREDICTIONS, MEAN_LENGTH = 512, 76, 254
SHAPES: dict[str, dict[str, Any]] = {
    "4 layers of 256": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
                        "intermediate_size": 1024},
    "BERT-base shapes, 2 layers": {
        "hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}  # fmt: skip


def make_batch(batch_size: int, config: BertConfig, generator: torch.Generator) -> Batch:
    """Random examples of the loader's form, whose lengths are spread evenly around MEAN_LENGTH."""
    lengths = torch.linspace(20, 2 * MEAN_LENGTH - 20, batch_size).long()[:, None]
    places = torch.arange(SEQ_LENGTH)[None]
    mask = (places < lengths).long()
    num_masked = (0.15 * lengths).long().clamp(1, PREDICTIONS)
    is_masked = (torch.arange(PREDICTIONS)[None] < num_masked).long()
    ids = (
        torch.randint(1000, config.vocab_size, (batch_size, SEQ_LENGTH), generator=generator) * mask
    )
    positions = torch.arange(1, PREDICTIONS + 1)[None] * is_masked
    return with_indices({
        "input_ids": ids, "input_mask": mask, "segment_ids": mask * (places >= lengths // 2),
        "masked_lm_positions": positions, "masked_lm_ids": ids.gather(1, positions) * is_masked,
        "masked_lm_weights": is_masked.float(),
        "next_sentence_labels": torch.arange(batch_size)[:, None] % 2,
    })  # fmt: skip


def full_logits(model: torch.nn.Module, batch: Batch) -> Logits:
    """As by a plain use of Hugging Face's class: all logits, and of these the masked ones."""
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["input_mask"],
        token_type_ids=batch["segment_ids"],
    )
    positions = batch["masked_lm_positions"][..., None].expand(
        -1, -1, output.prediction_logits.shape[-1]
    )
    masked = output.prediction_logits.gather(1, positions).flatten(0, 1)
    return masked[batch["prediction_indices"]], output.seq_relationship_logits


def measure(
    model: torch.nn.Module,
    forward: Callable[[torch.nn.Module, Batch], Logits],
    batch: Batch,
    steps: int,
) -> tuple[float, float]:
    """Returns (loss of the first step, median CPU seconds of a step)."""
    optimizer = Lamb(parameter_groups(model, 0.01), lr=1e-4, max_grad_norm=1.0)
    seconds, losses = [], []
    for _ in range(steps + 1):
        started = time.process_time()
        optimizer.zero_grad()
        masked_lm, next_sentence = loss_sums(forward(model, batch), batch)
        loss = masked_lm / batch["masked_lm_weights"].sum() + next_sentence / len(
            batch["input_ids"]
        )
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - started)
        losses.append(loss.item())
    return losses[0], sorted(seconds[1:])[steps // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_size", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=5, help="timed, after one that is not (default: %(default)s)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| model | program | CPU seconds a step | tokens/s | speed-up |\n|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        config = BertConfig(
            **shape, vocab_size=30522, hidden_act="gelu_new", layer_norm_eps=1e-12,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        batch = make_batch(args.batch_size, config, torch.Generator().manual_seed(1))
        torch.manual_seed(1)
        rows, weights = [], build_model(config).state_dict()
        for program, build, forward in (
            ("Hugging Face, logits at all positions", BertForPreTraining, full_logits),
            ("ours, `--unpad=False`", build_model, predict),
            ("ours", build_model, predict),
        ):
            model = build(config)
            model.load_state_dict(weights)
            if program == "ours":
                leave_out_padding(model)
            rows.append((program, *measure(model, forward, batch, args.steps)))
        for program, loss, seconds in rows:
            if abs(loss - rows[0][1]) > 1e-4 * rows[0][1]:
                sys.exit(f"error: {name}, {program}: loss {loss}, expected {rows[0][1]}")
            tokens = batch["input_mask"].sum().item() / seconds
            print(
                (
                    f"| {name} | {program} | {seconds:.2f} | {tokens:,.0f} | "
                    f"{rows[0][2] / seconds:.1f} |"
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
