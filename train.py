#!/usr/bin/env python3
"""BERT pretraining with ColossalAI: masked LM and next-sentence prediction on MLPerf's examples.

torchrun --nproc_per_node=8 train.py --bert_config_file=configs/bert_large.json --output_dir=runs/large \\
    --tfrecord_train=tfrecord --idx_train=idx/train --tfrecord_eval=eval --idx_eval=idx/eval --optimizer=adamw \\
    --train_batch_size=256 --learning_rate=1e-4 --num_warmup_steps=10000 --num_train_steps=1000000

Writes <output_dir>/metrics.jsonl (a line per step and per evaluation), checkpoints/, curves.png, and at the end model/,
which Hugging Face's BertForPreTraining.from_pretrained loads; best/ is the model of the best evaluation. One process per GPU;
without CUDA it trains on the CPU over gloo. The same command again goes on from the newest checkpoint, to the same losses.
@configs/recipes/mlperf_256.args among the flags reads flags from that file.
"""

import contextlib
import gc
import glob
import itertools
import json
import math
import os
import time

from bert import quiet_imports  # noqa: F401  before the frameworks

# isort: split
import torch
import torch.distributed as dist
from colossalai.booster import Booster
from colossalai.booster.plugin import TorchDDPPlugin

from bert import checkpoint, cli
from bert.files import DataError, atomic_writer, list_folder_or_pattern, raise_all
from bert.flops import peak_flops, training_flops
from bert.launch import StopRequest, control_group, join_processes
from bert.metrics import Recorder, evaluate, plot_curves
from bert.model import build_model, leave_out_padding, load_config, load_model, load_tokenizer, loss_sums, predict, save_model
from bert.optimization import AdamWeightDecay, Lamb, clip_gradients, learning_rate, parameter_groups
from bert_dali_dataloader import build_dali_eval, build_dali_train

VOCAB_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vocab.txt")


def parse_flags(argv=None):
    parser = cli.parser_from_docstring(__doc__)
    model = parser.add_argument_group("model and output")
    add = model.add_argument
    add("--bert_config_file", required=True, help="configs/bert_large.json or another of MLPerf's form")
    add(
        "--init_checkpoint",
        help="weights to start from: a TensorFlow checkpoint such as MLPerf's model.ckpt-28252, or a Hugging Face folder such "
        "as a run's model/; leave out for random weights",
    )
    add(
        "--vocab_file",
        default=VOCAB_FILE,
        help="of the examples, to be saved with the model (default: vocab.txt beside this script)",
    )
    cli.add_boolean_flag(model, "do_lower_case", True, "False for a cased vocabulary")
    add("--output_dir", required=True, help="folder of this run; the same command goes on with the run that is in it")
    data = parser.add_argument_group("data: folders, glob patterns or files")
    add = data.add_argument
    add("--tfrecord_train", required=True, help="training TFRecords")
    add("--idx_train", help="their indexes; what is missing in a folder is made (default: <output_dir>/idx/train)")
    add("--tfrecord_eval", required=True, help="evaluation TFRecords")
    add("--idx_eval", help="their indexes, likewise (default: <output_dir>/idx/eval)")
    cli.add_boolean_flag(data, "shuffle", True, "False: training examples in file order")
    add("--num_threads", type=int, default=4, help="loader threads per process (default: %(default)s)")
    training = parser.add_argument_group("training")
    add = training.add_argument
    cli.add_boolean_flag(
        training, "unpad", False, "compute nothing for padding; same losses but for rounding and dropout's draws"
    )
    add("--train_batch_size", type=int, required=True, help="examples per step over all processes")
    add("--steps_per_update", type=int, default=1, help="gradient accumulation; 1: none (default: %(default)s)")
    add("--num_train_steps", type=int, required=True, help="optimizer steps; 0: only evaluate")
    add("--num_warmup_steps", type=int, default=0, help="steps of linear warm-up; 0: none (default: %(default)s)")
    add("--start_warmup_step", type=int, default=0, help="step at which warm-up begins, 0 or less (default: %(default)s)")
    add("--learning_rate", type=float, required=True, help="peak rate")
    add("--poly_power", type=float, default=1.0, help="power of the decay to 0 (default: %(default)s, linear)")
    add("--optimizer", choices=("lamb", "adamw"), default="lamb", help="(default: %(default)s)")
    cli.add_boolean_flag(training, "adam_bias_correction", False, "for --optimizer=adamw; MLPerf's has none")
    add("--lamb_beta_1", type=float, default=0.9, help="first-moment decay of either optimizer (default: %(default)s)")
    add("--lamb_beta_2", type=float, default=0.999, help="second-moment decay (default: %(default)s)")
    add("--lamb_weight_decay_rate", type=float, default=0.01, help="weight decay; 0: none (default: %(default)s)")
    add("--log_epsilon", type=float, default=-6.0, help="epsilon of the optimizer is 10 to this power (default: %(default)s)")
    add("--max_grad_norm", type=float, default=1.0, help="clip the global gradient norm; 0: no clipping (default: %(default)s)")
    add("--seed", type=int, default=12345, help="of weights, dropout and shuffling (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is any (default: %(default)s)")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 autocast on CUDA, fp32 on CPU")
    add = parser.add_argument_group("checkpoints").add_argument
    add("--save_checkpoints_steps", type=int, default=1000, help="steps between; 0: at the end only (default: %(default)s)")
    add("--keep_checkpoint_max", type=int, default=3, help="newest ones to keep; 0: all (default: %(default)s)")
    evaluation = parser.add_argument_group("evaluation")
    add = evaluation.add_argument
    add("--eval_batch_size", type=int, default=32, help="examples per evaluation batch of a process (default: %(default)s)")
    add("--eval_every_samples", type=int, help="training examples between evaluations (default: MLPerf's formula)")
    cli.add_boolean_flag(evaluation, "eval_at_start", False, "evaluate before the first step too")
    add("--target_accuracy", type=float, help="stop at this masked LM accuracy, such as MLPerf's 0.720; leave out to train on")
    return parser.parse_args(argv)


def check(flags, world_size):
    problems = []
    for name in ("train_batch_size", "eval_batch_size", "steps_per_update", "num_threads"):
        if getattr(flags, name) < 1:
            problems.append(f"--{name}={getattr(flags, name)}: expected 1 or more")
    for name in (
        "num_train_steps", "num_warmup_steps", "lamb_weight_decay_rate", "max_grad_norm", "save_checkpoints_steps",
        "keep_checkpoint_max",
    ):  # fmt: skip
        if getattr(flags, name) < 0:
            problems.append(f"--{name}={getattr(flags, name)}: expected 0 or more")
    if flags.eval_every_samples is not None and flags.eval_every_samples < 1:
        problems.append(f"--eval_every_samples={flags.eval_every_samples}: expected 1 or more")
    parts = world_size * flags.steps_per_update
    if parts > 0 and flags.train_batch_size % parts:
        problems.append(
            f"--train_batch_size={flags.train_batch_size} is not divisible by {world_size} processes "
            f"x --steps_per_update={flags.steps_per_update}"
        )
    if flags.start_warmup_step > 0:
        problems.append(
            f"--start_warmup_step={flags.start_warmup_step}: a positive start means negative rates; expected 0 or less"
        )
    for name, is_fine, expected in (
        ("learning_rate", 0 <= flags.learning_rate < math.inf, "0 or more"),
        ("lamb_beta_1", 0 <= flags.lamb_beta_1 < 1, "0 to below 1"),
        ("lamb_beta_2", 0 <= flags.lamb_beta_2 < 1, "0 to below 1"),
    ):
        if not is_fine:
            problems.append(f"--{name}={getattr(flags, name)}: expected {expected}")
    for split in ("train", "eval"):
        names = [f"tfrecord_{split}"]
        if not is_folder_of_indexes(indexes_of(flags, split)):
            names.append(f"idx_{split}")
        for name in names:
            try:
                list_folder_or_pattern(getattr(flags, name))
            except DataError as error:
                problems.append(f"--{name}: {error}")
    local_processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if flags.device != "cpu" and 0 < gpus < local_processes:
        problems.append(f"{local_processes} processes on this machine, but {gpus} GPUs; use torchrun --nproc_per_node={gpus}")
    if flags.device == "cuda" and not torch.cuda.is_available():
        problems.append("--device=cuda: torch finds no CUDA GPU here; leave the flag out to train on the CPU")
    if not os.path.isfile(flags.bert_config_file):
        problems.append(f"--bert_config_file: {flags.bert_config_file}: no such file")
    if flags.target_accuracy is not None and not 0 < flags.target_accuracy <= 1:
        problems.append(f"--target_accuracy={flags.target_accuracy}: expected above 0, to 1")
    problems += differences_from_earlier_run(flags)
    raise_all(problems)


# What may differ when a run goes on. Data are compared by the names and sizes of the files, wherever they lie.
CHANGEABLE_FLAGS = {
    "output_dir", "bert_config_file", "init_checkpoint", "vocab_file", "tfrecord_train", "idx_train", "tfrecord_eval", "idx_eval", "num_threads",
    "steps_per_update", "device", "save_checkpoints_steps", "keep_checkpoint_max", "eval_batch_size", "eval_every_samples",
    "eval_at_start", "target_accuracy",
}  # fmt: skip


def flags_path(flags):
    return os.path.join(flags.output_dir, "flags.json")


def differences_from_earlier_run(flags):
    """Returns a message for each flag that shapes the run and is another than in the run that is in the output folder."""
    if not os.path.exists(flags_path(flags)):
        if os.path.exists(os.path.join(flags.output_dir, "metrics.jsonl")):
            return [f"--output_dir: {flags.output_dir} holds a metrics.jsonl but no flags.json; choose another folder"]
        return []
    with open(flags_path(flags)) as file:
        earlier = json.load(file)
    return [
        f"--{name}={value}: the run in {flags.output_dir} was begun with {earlier.get(name)}; choose another --output_dir for "
        "another run"
        for name, value in vars(flags).items()
        if name not in CHANGEABLE_FLAGS and value != earlier.get(name)
    ]


# ---------------------------------------------------------------------------------------------------------------
# Derived settings


def mlperf_eval_interval(batch_size):
    """Samples between evaluations (MLPerf Training rules, BERT)."""
    return math.floor(0.05 * (230.23 * batch_size + 3_000_000) / 25_000) * 25_000


def indexes_of(flags, split):
    """Where the indexes of "train" or "eval" are."""
    return getattr(flags, f"idx_{split}") or os.path.join(flags.output_dir, "idx", split)


def is_folder_of_indexes(where):
    """Whether it is a folder, or a name for one, and no pattern or file."""
    return os.path.isdir(where) or not (os.path.exists(where) or glob.has_magic(where))


def build_loaders(flags, config, device):
    """Returns the loaders of training and evaluation."""
    common = {
        "shard_id": dist.get_rank(), "num_shards": dist.get_world_size(), "num_threads": flags.num_threads,
        "cuda": device.type == "cuda", "device_id": device.index, "seed": flags.seed, "vocab_size": config.vocab_size,
    }  # fmt: skip

    def build(build_dali, split, **options):
        indexes = indexes_of(flags, split)
        if is_folder := is_folder_of_indexes(indexes):
            os.makedirs(indexes, exist_ok=True)
        files = getattr(flags, f"tfrecord_{split}")
        return build_dali(files, indexes, build_missing_indexes=is_folder, **options, **common)

    micro_batch_size = flags.train_batch_size // (dist.get_world_size() * flags.steps_per_update)
    return (
        build(build_dali_train, "train", batch_size=micro_batch_size, shuffle=flags.shuffle),
        build(build_dali_eval, "eval", batch_size=flags.eval_batch_size),
    )


def check_data(loaders, config, config_file):
    """DataError if the examples are longer than the model allows; the loaders check their token ids."""
    problems = []
    for loader, flag in zip(loaders, ("--tfrecord_train", "--tfrecord_eval")):
        seq_length = len(loader.first_example["input_ids"])
        if seq_length > config.max_position_embeddings:
            problems.append(
                f"{flag}: examples of {seq_length} tokens, but {config_file} has max_position_embeddings "
                f"{config.max_position_embeddings}; make shorter examples or use another configuration"
            )
    raise_all(problems)


def build_optimizer(flags, model):
    optimizer_class = {"lamb": Lamb, "adamw": AdamWeightDecay}[flags.optimizer]
    groups = parameter_groups(model, flags.lamb_weight_decay_rate)
    options = {"bias_correction": flags.adam_bias_correction} if flags.optimizer == "adamw" else {}
    return optimizer_class(groups, betas=(flags.lamb_beta_1, flags.lamb_beta_2), eps=10**flags.log_epsilon, **options)


# ---------------------------------------------------------------------------------------------------------------
# Training


def endless(loader):
    while True:
        yield from loader


def denominators(batches):
    """Returns float32 [2]: sum of masked LM weights plus 1e-5, and examples, of one update over all ranks.

    Dividing by the sums of the whole update makes a loss that does not depend on how ranks and micro-batches cut it.
    """
    weights = torch.stack([batch["masked_lm_weights"].sum() for batch in batches]).sum()
    sums = torch.stack([weights, torch.full_like(weights, sum(len(batch["input_ids"]) for batch in batches))])
    dist.all_reduce(sums)
    return sums + sums.new_tensor([1e-5, 0.0])


def count_tokens(batches):
    """Returns the tokens of one update that are no padding, over all ranks, float32 []."""
    tokens = torch.stack([batch["input_mask"].sum() for batch in batches]).sum().float()
    dist.all_reduce(tokens)
    return tokens


def accumulate_gradients(booster, model, optimizer, batches, autocast):
    """Forward and backward over the micro-batches of one update; returns its two losses over all ranks, float32 [2]."""
    total, divisor = 0.0, denominators(batches)
    for number, batch in enumerate(batches, start=1):
        is_last = number == len(batches)
        with contextlib.nullcontext() if is_last else booster.no_sync(model, optimizer):
            with autocast:
                logits = predict(model, batch)
            losses = torch.stack(loss_sums(logits, batch)) / divisor
            # The plugin averages gradients over the ranks; the losses are already shares of the sum over ranks.
            booster.backward(losses.sum() * dist.get_world_size(), optimizer)
        total = total + losses.detach()
    dist.all_reduce(total)
    return total


class Run:
    """What a training run is made of and what it has come to. Every rank calls the same methods at the same step."""

    def __init__(self, flags, config, device):
        self.flags, self.device = flags, device
        self.train_loader, self.eval_loader = build_loaders(flags, config, device)
        check_data((self.train_loader, self.eval_loader), config, flags.bert_config_file)
        self.tokenizer = load_tokenizer(flags.vocab_file, flags.do_lower_case, config)
        self.eval_every_samples = flags.eval_every_samples or mlperf_eval_interval(flags.train_batch_size)
        self.use_bf16 = flags.precision == "bf16" or (flags.precision == "auto" and device.type == "cuda")
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.use_bf16)
        self.control = control_group()
        self.stop_request = StopRequest(self.control)
        # The same weights on every rank, then dropout of its own.
        self.module = load_model(flags.init_checkpoint, config) if flags.init_checkpoint else build_model(config)
        if flags.unpad:
            leave_out_padding(self.module)
        torch.manual_seed(flags.seed + 1 + dist.get_rank())
        self.booster = Booster(plugin=TorchDDPPlugin())
        self.model, self.optimizer, *_ = self.booster.boost(self.module, build_optimizer(flags, self.module))
        self.model.train()
        self.checkpoints = os.path.join(flags.output_dir, "checkpoints")
        self.step, self.best_accuracy = 0, -1.0
        self._resume()

    @property
    def is_target_reached(self):
        target = self.flags.target_accuracy
        return target is not None and self.best_accuracy >= target

    def _resume(self):
        """Goes on from the newest valid checkpoint, if there is one; opens the recorder."""
        random_state = checkpoint.random_state(self.device)
        self._settle_buckets()
        metrics_bytes, found = 0, checkpoint.newest_valid(self.checkpoints, self.control)
        if found:
            path, num_ranks = found
            shared = checkpoint.load_shared(path)
            self.module.load_state_dict(shared["model"])
            self.optimizer.unwrap().load_state_dict(shared["optimizer"])
            self.train_loader.load_state_dict(shared["loader"])
            self.step, self.best_accuracy, metrics_bytes = (shared[name] for name in ("step", "best_accuracy", "metrics_bytes"))
            if num_ranks == dist.get_world_size():
                random_state = checkpoint.load_own(path)["random"]
        checkpoint.restore_random_state(random_state, self.device)
        if dist.get_rank() == 0:
            os.makedirs(self.flags.output_dir, exist_ok=True)
            with atomic_writer(flags_path(self.flags)) as file:
                file.write(json.dumps(vars(self.flags), indent=1).encode())
        self.recorder = Recorder(
            self.flags.output_dir, self.flags.num_train_steps, self.flags.train_batch_size, self.seq_length, self._utilisation,
            self.step + 1, metrics_bytes,
        )  # fmt: skip
        self.recorder.say(self._description())
        if found:
            self.recorder.say(f"goes on from {path}, after step {self.step:,}")

    def _settle_buckets(self):
        """Two forward and backward passes without an update.

        Behind its first one, the data-parallel model lays out anew the buckets in which it adds up gradients. Done before
        the first step, it makes a run that goes on add in the same order as one that was never stopped.
        """
        batch = {
            name: torch.tensor(column[None], device=self.device) for name, column in self.train_loader.first_example.items()
        }
        for _ in range(2):
            with self.autocast:
                logits = predict(self.model, batch)
            self.booster.backward(sum(loss_sums(logits, batch)), self.optimizer)
        self.optimizer.zero_grad()

    @property
    def seq_length(self):
        return len(self.train_loader.first_example["input_ids"])

    def _utilisation(self, sequences_per_second, mean_tokens):
        """MFU, counting the arithmetic that tokens need and not what padding costs, or None where the peak is not known."""
        peak = peak_flops(torch.cuda.get_device_name(self.device)) if self.device.type == "cuda" and self.use_bf16 else None
        if peak is None:
            return None
        num_predictions = len(self.train_loader.first_example["masked_lm_ids"]) * mean_tokens / self.seq_length
        flops = training_flops(self.module.config, mean_tokens, num_predictions)
        return sequences_per_second * flops / (peak * dist.get_world_size())

    def _description(self):
        flags, world_size, loaders = self.flags, dist.get_world_size(), (self.train_loader, self.eval_loader)
        train_examples, eval_examples = (loader.num_records for loader in loaders)
        num_parameters = sum(parameter.numel() for parameter in self.module.parameters())
        flops = training_flops(self.module.config, self.seq_length, len(self.train_loader.first_example["masked_lm_ids"]))
        return (
            f"{num_parameters:,} parameters, {16 * num_parameters / 1e9:.1f} GB with gradients and optimizer, activations besides | "
            f"{flags.train_batch_size * flops / 1e12:,.3g} TFLOPs a step | {world_size} x {self.device.type}, "
            f"{'bf16 autocast' if self.use_bf16 else 'fp32'} | batch {flags.train_batch_size} = {world_size} processes x "
            f"{flags.steps_per_update} micro-batches x {flags.train_batch_size // (world_size * flags.steps_per_update)} examples\n"
            f"{train_examples:,} training examples | {flags.num_train_steps:,} steps = "
            f"{flags.num_train_steps * flags.train_batch_size / train_examples:.2f} epochs | "
            f"{eval_examples:,} evaluation examples, evaluated every {self.eval_every_samples:,} samples"
        )

    def set_learning_rate(self, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def evaluate(self):
        started = time.monotonic()
        with self.autocast:
            metrics = evaluate(self.module, self.eval_loader, self.device)
        if metrics["examples"] != self.eval_loader.num_records:
            raise DataError(f"{metrics['examples']} examples were evaluated, there are {self.eval_loader.num_records}")
        self.recorder.evaluation(self.step, metrics, time.monotonic() - started)
        if self.step > 0 and metrics["masked_lm_accuracy"] > self.best_accuracy:
            self.best_accuracy = metrics["masked_lm_accuracy"]
            self._export("best")

    def _export(self, name):
        if self.recorder.is_main:
            save_model(self.module, os.path.join(self.flags.output_dir, name), self.tokenizer)

    def save(self):
        started = time.monotonic()
        shared = {
            "model": self.module.state_dict(), "optimizer": self.optimizer.unwrap().state_dict(),
            "loader": self.train_loader.state_dict(), "step": self.step, "best_accuracy": self.best_accuracy,
            "metrics_bytes": self.recorder.bytes_written(),
        }  # fmt: skip
        own = {"random": checkpoint.random_state(self.device)}
        checkpoint.save(self.checkpoints, self.step, shared, own, self.flags.keep_checkpoint_max, self.control)
        self.recorder.pause(time.monotonic() - started)

    def finish(self):
        """Writes the model and the curves, and says what there is."""
        folder = self.flags.output_dir
        if self.step > 0:
            self._export("model")
        if not self.recorder.is_main:
            return
        if self.step > 0:
            plot_curves(os.path.join(folder, "metrics.jsonl"), os.path.join(folder, "curves.png"))
        if self.is_target_reached:
            self.recorder.say(f"reached the target accuracy {self.flags.target_accuracy} at step {self.step:,}")
        self.recorder.say(f"done: {', '.join(os.path.join(folder, name) for name in sorted(os.listdir(folder)))}")


def train(flags, config, device):
    run = Run(flags, config, device)
    if run.step == 0 and (flags.eval_at_start or flags.num_train_steps == 0):
        run.evaluate()
    examples = endless(run.train_loader)
    while run.step < flags.num_train_steps and not run.is_target_reached:
        rate = learning_rate(
            run.step,
            flags.learning_rate,
            flags.num_warmup_steps,
            flags.num_train_steps,
            flags.poly_power,
            flags.start_warmup_step,
        )
        run.set_learning_rate(rate)
        run.optimizer.zero_grad()
        batches = list(itertools.islice(examples, flags.steps_per_update))
        losses = accumulate_gradients(run.booster, run.model, run.optimizer, batches, run.autocast)
        gradient_norm, is_finite = clip_gradients(run.module.parameters(), flags.max_grad_norm)
        run.optimizer.step(is_finite=is_finite)
        run.step += 1
        run.recorder.step(run.step, losses, gradient_norm, rate, count_tokens(batches), *run.train_loader.position)

        is_last = run.step == flags.num_train_steps
        samples = run.step * flags.train_batch_size
        if is_last or samples // run.eval_every_samples > (samples - flags.train_batch_size) // run.eval_every_samples:
            run.evaluate()
        stopped_by = run.stop_request.agreed()
        is_save_due = flags.save_checkpoints_steps > 0 and run.step % flags.save_checkpoints_steps == 0
        if is_save_due or is_last or run.is_target_reached or stopped_by:
            run.save()
        if stopped_by and not (is_last or run.is_target_reached):
            run.recorder.say(f"stopped by {stopped_by} after step {run.step:,}; the same command goes on from there")
            return
    run.finish()


def main(argv=None):
    flags = parse_flags(argv)
    check(flags, int(os.environ.get("WORLD_SIZE", 1)))
    config = load_config(flags.bert_config_file)
    device = join_processes(flags.device, flags.seed)
    train(flags, config, device)
    # The data-parallel model must be gone before the process group: its destructor would otherwise end the group while it
    # holds the interpreter's lock, and wait for ever for gloo's threads, which want that lock too (seen in 3 of 8 runs).
    # After an error the group is left to the end of the process, which comes at once.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    cli.run(main)
