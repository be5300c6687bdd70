#!/usr/bin/env python3
"""BERT pretraining with ColossalAI: masked LM and next-sentence prediction on MLPerf's examples.

torchrun --nproc_per_node=8 train.py --bert_config_file=configs/bert_large.json \\
    --output_dir=runs/large --tfrecord_train=tfrecord --idx_train=idx/train --tfrecord_eval=eval \\
    --idx_eval=idx/eval --optimizer=adamw --train_batch_size=256 --learning_rate=1e-4 \\
    --num_warmup_steps=10000 --num_train_steps=1000000

Writes <output_dir>/metrics.jsonl (a line per step and per evaluation), tensorboard/, mlperf.log,
checkpoints/, curves.png, and at the end model/, which Hugging Face's
BertForPreTraining.from_pretrained loads; best/ is the model of the best evaluation. One process per
GPU; without CUDA it trains on the CPU over gloo. The same command again resumes from the newest
checkpoint, to the same losses. @configs/recipes/mlperf_256.args among the flags reads flags from
that file. --dry_run estimates what the run costs, from its flags and one file of examples.
"""

import argparse
import os

from bert.common import cli
from bert.training.choices import DEVICES, DTYPES, OPTIMIZERS, PLUGINS

VOCAB_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vocab.txt")


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser_from_docstring(__doc__)
    model = parser.add_argument_group("model and output")
    add = model.add_argument
    add(
        "--bert_config_file",
        required=True,
        help="configs/bert_large.json or another of MLPerf's form",
    )
    add(
        "--init_checkpoint",
        help=(
            "weights to start from: a TensorFlow checkpoint such as MLPerf's model.ckpt-28252, or "
            "a Hugging Face folder such as a run's model/; leave out for random weights"
        ),
    )
    add(
        "--vocab_file",
        default=VOCAB_FILE,
        help="vocabulary of the examples, saved with the model (default: this script's vocab.txt)",
    )
    cli.add_boolean_flag(model, "do_lower_case", True, "False for a cased vocabulary")
    add(
        "--output_dir",
        help="of this run; the same command resumes it; required, except with --dry_run",
    )
    add(
        "--dry_run",
        action="store_true",
        help=(
            "train nothing, write nothing, use no GPU: estimate memory, disk and hours; of the "
            "data it needs --tfrecord_train alone, of which it opens the first file"
        ),
    )
    data = parser.add_argument_group("data: folders, glob patterns or files")
    add = data.add_argument
    add("--tfrecord_train", required=True, help="training TFRecords, or instance files")
    add(
        "--idx_train",
        help=(
            "indexes of TFRecords; in a folder, missing ones are created "
            "(default: <output_dir>/idx/train)"
        ),
    )
    add(
        "--tfrecord_eval",
        help="evaluation TFRecords, or instance files; required, except with --dry_run",
    )
    add("--idx_eval", help="their indexes, as --idx_train (default: <output_dir>/idx/eval)")
    cli.add_boolean_flag(data, "shuffle", True, "False: training examples in file order")
    add(
        "--max_seq_length",
        type=int,
        help="refuse examples of another length (default: that of the first example)",
    )
    add(
        "--max_predictions_per_seq",
        type=int,
        help="refuse examples with another number of predictions (default: as the first example)",
    )
    add(
        "--num_threads",
        type=int,
        default=4,
        help="loader threads per process (default: %(default)s)",
    )
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--train_batch_size", type=int, required=True, help="examples per step over all processes")
    add(
        "--steps_per_update",
        type=int,
        default=1,
        help="gradient accumulation; 1: none (default: %(default)s)",
    )
    add("--num_train_steps", type=int, required=True, help="optimizer steps; 0: only evaluate")
    add(
        "--num_warmup_steps",
        type=int,
        default=0,
        help="steps of linear warm-up; 0: none (default: %(default)s)",
    )
    add(
        "--start_warmup_step",
        type=int,
        default=0,
        help="step at which warm-up begins, 0 or less (default: %(default)s)",
    )
    add("--learning_rate", type=float, required=True, help="peak rate")
    add(
        "--poly_power",
        type=float,
        default=1.0,
        help="power of the decay to 0 (default: %(default)s, linear)",
    )
    add("--optimizer", choices=OPTIMIZERS, default="lamb", help="(default: %(default)s)")
    cli.add_boolean_flag(
        training, "adam_bias_correction", False, "for --optimizer=adamw; MLPerf's has none"
    )
    add(
        "--lamb_beta_1",
        type=float,
        default=0.9,
        help="first-moment decay of either optimizer (default: %(default)s)",
    )
    add(
        "--lamb_beta_2",
        type=float,
        default=0.999,
        help="second-moment decay (default: %(default)s)",
    )
    add(
        "--lamb_weight_decay_rate",
        type=float,
        default=0.01,
        help="weight decay; 0: none (default: %(default)s)",
    )
    add(
        "--log_epsilon",
        type=float,
        default=-6.0,
        help="epsilon of the optimizer is 10 to this power (default: %(default)s)",
    )
    add(
        "--max_grad_norm",
        type=float,
        default=1.0,
        help="clip the global gradient norm; 0: no clipping (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=12345,
        help="of weights, dropout and shuffling (default: %(default)s)",
    )
    machine = parser.add_argument_group("machine")
    add = machine.add_argument
    add(
        "--device",
        choices=DEVICES,
        default="auto",
        help="auto: CUDA if there is any (default: %(default)s)",
    )
    add(
        "--precision",
        choices=("auto", *DTYPES),
        default="auto",
        help=(
            "auto: bf16 on CUDA, fp32 on the CPU; ddp keeps float32 weights, the other plugins "
            "weights of this precision and float32 masters"
        ),
    )
    add(
        "--plugin",
        choices=PLUGINS,
        default="ddp",
        help=(
            "ddp: data parallelism; zero1: with the optimizer's state distributed; "
            "hybrid: with layers distributed over --tp_size processes (default: %(default)s)"
        ),
    )
    add(
        "--tp_size",
        type=int,
        default=1,
        help="processes over which a layer is distributed; 1: none (default: %(default)s)",
    )
    cli.add_boolean_flag(
        machine,
        "unpad",
        True,
        "False: compute padding too; same losses except for rounding and dropout",
    )
    cli.add_boolean_flag(
        machine,
        "balance",
        False,
        "of each batch give every process about the same number of tokens, so that none waits for "
        "another; needs instance files; same losses except for rounding and dropout",
    )
    cli.add_boolean_flag(machine, "compile", False, "torch.compile the layers")
    cli.add_boolean_flag(
        machine,
        "gradient_checkpointing",
        False,
        "keep no activations inside layers: less memory, a third slower",
    )
    add(
        "--collective_timeout",
        type=float,
        default=1800,
        help="seconds after which a rank stops waiting for the others (default: %(default)s)",
    )
    checkpoints = parser.add_argument_group("checkpoints")
    add = checkpoints.add_argument
    add(
        "--save_checkpoints_steps",
        type=int,
        default=1000,
        help="steps between checkpoints; 0: only at the end (default: %(default)s)",
    )
    add(
        "--keep_checkpoint_max",
        type=int,
        default=3,
        help="newest checkpoints to keep; 0: all (default: %(default)s)",
    )
    cli.add_boolean_flag(
        checkpoints,
        "export",
        False,
        "only write export/ from the newest checkpoint",
    )
    evaluation = parser.add_argument_group("evaluation")
    add = evaluation.add_argument
    add(
        "--eval_batch_size",
        type=int,
        default=32,
        help="examples per evaluation batch of a process (default: %(default)s)",
    )
    add(
        "--eval_every_samples",
        type=int,
        help="training examples between evaluations (default: MLPerf's formula)",
    )
    cli.add_boolean_flag(evaluation, "eval_at_start", False, "evaluate before the first step too")
    add(
        "--expected_curve",
        help="warn if accuracy leaves this curve, such as configs/curves/mosaicml_448_adamw.csv",
    )
    add(
        "--target_accuracy",
        type=float,
        help="stop at this masked LM accuracy, such as MLPerf's 0.720 (default: never)",
    )
    flags = parser.parse_args(argv)
    missing = [f"--{name}" for name in ("output_dir", "tfrecord_eval") if not getattr(flags, name)]
    if missing and not flags.dry_run:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return flags


def main(argv: list[str] | None = None) -> None:
    flags = parse_flags(argv)
    # Frameworks take up to 9 s of CPU: --help and a misspelt flag wait for none of them.
    with cli.imports_without_garbage_collection():
        if flags.dry_run:
            from bert.training.dry_run import run as command
        elif flags.export:
            from bert.training.export import export as command
        else:
            from bert.training.loop import train as command
    command(flags)


if __name__ == "__main__":
    cli.run_as_rank(main)
