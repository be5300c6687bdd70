"""A training run: its data, model, optimizer, logs and state."""

import argparse
import math
import os
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import BertConfig, BertForPreTraining

from bert.common.files import DataError, atomic_writer, raise_if_any
from bert.training import checkpoint
from bert.training.background import BackgroundWriter
from bert.training.data_files import splits_of
from bert.training.distributed import check_alike, gathered, shared_errors
from bert.training.expected_curve import ExpectedCurve
from bert.training.flag_checks import warnings
from bert.training.flags_file import FLAGS_OF_A_RANK, flags_content, flags_path
from bert.training.flops import peak_flops, training_flops
from bert.training.metrics import Recorder, evaluate, plot_curves, read_metrics
from bert.training.mlperf_log import MLPerfLog, division, hyper_parameters
from bert.training.model import (
    build_model,
    compile_layers,
    config_values,
    leave_out_padding,
    load_model,
    load_tokenizer,
    loss_sums,
    predict,
    remove_unfinished,
    save_model,
    with_indices,
)
from bert.training.model_card import CARD, add_curves, last_evaluation, write_card
from bert.training.optimization import AdamWeightDecay, Lamb, LossScale, parameter_groups
from bert.training.plugins import parallelize
from bert_dali_dataloader import DaliDataloader, build_dali_eval, build_dali_train


def mlperf_eval_interval(batch_size: int) -> int:
    """Returns the samples between evaluations (MLPerf Training rules, BERT)."""
    return math.floor(0.05 * (230.23 * batch_size + 3_000_000) / 25_000) * 25_000


class Run:
    """A training run. Every rank calls the same methods at the same step."""

    def __init__(self, flags: argparse.Namespace, config: BertConfig, device: torch.device):
        self.flags, self.config, self.device = flags, config, device
        # In ColossalAI, processes that share tensors, and so examples, have consecutive ranks.
        self._shard_id = dist.get_rank() // flags.tp_size
        self._num_shards = dist.get_world_size() // flags.tp_size
        self.checkpoints = os.path.join(flags.output_dir, "checkpoints")
        self._splits = splits_of(flags)
        with shared_errors():  # first on rank 0, which says so
            if dist.get_rank() == 0:
                self._remove_leftovers()
                self._make_folders_of_indexes()
        found = checkpoint.newest_valid(self.checkpoints)
        self.train_loader, self.eval_loader = self._build_loaders()
        self._check_ranks()
        self.tokenizer = load_tokenizer(flags.vocab_file, flags.do_lower_case, config)
        self.eval_every_samples = flags.eval_every_samples or mlperf_eval_interval(
            flags.train_batch_size
        )
        self.precision = flags.precision
        if self.precision == "auto":
            self.precision = "bf16" if device.type == "cuda" else "fp32"
        # Every rank draws the same weights, but its own dropout.
        module = self._build_module(None if found else flags.init_checkpoint)
        torch.manual_seed(flags.seed + 1 + self._shard_id)
        optimizer = self._build_optimizer(module)
        self.parallel = parallelize(
            flags.plugin, module, optimizer, device, self.precision, flags.tp_size
        )
        self.optimizer = self.parallel.optimizer
        self.step, self.best_accuracy = 0, -1.0
        self.writer = BackgroundWriter()
        self._start_or_resume(found)

    # ----------------------------------------------------------------------------------------------
    # Data, model and optimizer

    def _build_loaders(self) -> tuple[DaliDataloader, DaliDataloader]:
        flags = self.flags
        common = {
            "shard_id": self._shard_id, "num_shards": self._num_shards,
            "num_threads": flags.num_threads, "cuda": self.device.type == "cuda",
            "device_id": self.device.index, "seed": flags.seed,
            "vocab_size": self.config.vocab_size, "indices": True,
        }  # fmt: skip

        def build(build_dali, split, **options):
            if split.has_instances:
                return build_dali(split.where, **options, **common)
            folder = split.folder_of_indexes
            if folder:
                os.makedirs(folder, exist_ok=True)  # where each rank has its own
            return build_dali(
                split.where, split.indexes, build_missing_indexes=bool(folder), **options, **common
            )

        train, evaluation = self._splits
        raise_if_any([*train.missing, *train.corrupt, *evaluation.missing, *evaluation.corrupt])
        return (
            build(
                build_dali_train,
                train,
                batch_size=self._micro_batch_size,
                shuffle=flags.shuffle,
                balance=flags.balance,
            ),  # fmt: skip
            build(build_dali_eval, evaluation, batch_size=flags.eval_batch_size),
        )

    def _remove_leftovers(self):
        """Removes what a killed run left unfinished: the folder is locked, so no run is at work."""
        checkpoint.remove_unfinished(self.checkpoints)
        for name in ("best", "model"):
            remove_unfinished(os.path.join(self.flags.output_dir, name))

    def _make_folders_of_indexes(self):
        for folder in [split.folder_of_indexes for split in self._splits]:
            if folder and not os.path.isdir(folder):
                os.makedirs(folder)
                print(f"{folder}: a new folder, for the indexes of the TFRecords", flush=True)

    def _check_ranks(self):
        """DataError if the ranks have different flags or data: they would hang or train wrongly."""
        values = {
            f"--{name}": value
            for name, value in vars(self.flags).items()
            if name not in FLAGS_OF_A_RANK
        }
        values["--bert_config_file"] = config_values(self.config)
        values["training files"] = self.train_loader.files
        values["evaluation files"] = self.eval_loader.files
        check_alike(values)

    def _build_module(self, init_checkpoint: str | None) -> BertForPreTraining:
        flags, config = self.flags, self.config
        module = load_model(init_checkpoint, config) if init_checkpoint else build_model(config)
        if flags.unpad:
            leave_out_padding(module)
        if flags.gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        if flags.compile:
            compile_layers(module)
        return module

    def _build_optimizer(self, module: BertForPreTraining) -> AdamWeightDecay:
        flags = self.flags
        options: dict[str, Any] = {
            "betas": (flags.lamb_beta_1, flags.lamb_beta_2), "eps": 10**flags.log_epsilon,
            "max_grad_norm": flags.max_grad_norm,
            "loss_scale": LossScale(self.device) if self.precision == "fp16" else None,
        }  # fmt: skip
        groups = parameter_groups(module, flags.lamb_weight_decay_rate)
        if flags.optimizer == "lamb":
            return Lamb(groups, **options)
        return AdamWeightDecay(groups, bias_correction=flags.adam_bias_correction, **options)

    # ----------------------------------------------------------------------------------------------
    # Start and resume

    def _start_or_resume(self, found: checkpoint.Checkpoint | None):
        """Resumes from a checkpoint if one was found; opens the logs."""
        random_state = checkpoint.random_state(self.device)
        log_bytes: dict[str, int] = {}
        messages = [f"warning: {warning}" for warning in warnings(self.flags, *self._splits)]
        self._settle_buckets()
        if self.flags.compile:  # evaluation too, which has code of its own, before the run's clock
            self._metrics_of([self._made_up_batch(self.flags.eval_batch_size)])
        if found:
            shared = checkpoint.load_shared(found.path)
            self.parallel.load_state_dict(shared["model"])
            self.train_loader.load_state_dict(shared["loader"])
            self.step, self.best_accuracy = shared["step"], shared["best_accuracy"]
            log_bytes = shared["log_bytes"]
            messages.append(f"resumes from {found.path}, after step {self.step:,}")
            if shared.get("eval_files", self.eval_loader.files) != self.eval_loader.files:
                self.best_accuracy = -1.0
                messages.append(
                    "warning: the evaluation examples have changed, so accuracies cannot be "
                    "compared with earlier ones; best/ starts again"
                )
            is_same_layout = shared["flags"]["tp_size"] == self.flags.tp_size
            if is_same_layout and found.num_ranks == dist.get_world_size():
                random_state = checkpoint.load_own(found.path)["random"]
        elif self.flags.init_checkpoint:
            messages.append(f"weights from {self.flags.init_checkpoint}")
        else:
            messages.append(f"random weights, by --seed={self.flags.seed}; no --init_checkpoint")
        checkpoint.restore_random_state(random_state, self.device)
        with shared_errors():
            if dist.get_rank() == 0:
                with atomic_writer(flags_path(self.flags.output_dir)) as file:
                    file.write(flags_content(self.flags, self.config, self._data()))
            self._open_logs(log_bytes)
        for message in [self._description(), *messages]:
            self.recorder.say(message)

    def _data(self):
        return {
            "train": self.train_loader.files, "eval": self.eval_loader.files,
            "max_seq_length": self.seq_length, "max_predictions_per_seq": self._num_predictions,
        }  # fmt: skip

    def _open_logs(self, kept_bytes: dict[str, int]):
        """kept_bytes: {log: how much of it belongs to the checkpoint that the run resumes from}."""
        flags = self.flags
        self.recorder = Recorder(
            flags.output_dir, flags.num_train_steps, flags.train_batch_size, self.seq_length,
            self._utilisation, self.train_loader.records_between,
            ExpectedCurve.read(flags.expected_curve) if flags.expected_curve else None,
            self.step + 1, kept_bytes.get("metrics", 0),
        )  # fmt: skip
        path = os.path.join(flags.output_dir, "mlperf.log")
        self.mlperf_log = MLPerfLog(path, self.recorder.is_main, kept_bytes.get("mlperf", 0))
        shape = self.seq_length, self._num_predictions
        self.mlperf_log.init_start(
            division(flags.optimizer, flags.target_accuracy, *shape, bool(flags.init_checkpoint))
        )
        num_examples = self.train_loader.num_records, self.eval_loader.num_records
        self.mlperf_log.hyper_parameters(hyper_parameters(flags, *shape, *num_examples))
        self.mlperf_log.init_stop()
        self.mlperf_log.run_start()

    def _settle_buckets(self):
        """Runs two forward and backward passes over made-up examples, without an update.

        After the first one, the data-parallel model rearranges the buckets in which it adds up
        gradients. So a resumed run adds them in the same order as an uninterrupted one.
        """
        batch = self._made_up_batch(self._micro_batch_size)
        for _ in range(2):
            with self.parallel.autocast():
                logits = predict(self.parallel.model, batch)
            masked_lm_loss, next_sentence_loss = loss_sums(logits, batch)
            self.parallel.backward(masked_lm_loss + next_sentence_loss)
            self.optimizer.zero_grad()

    def _made_up_batch(self, num_examples):
        return with_indices({
            name: torch.tensor(np.ones_like(column)).expand(num_examples, -1).to(self.device)
            for name, column in self.train_loader.first_example.items()
        })  # fmt: skip

    # ----------------------------------------------------------------------------------------------
    # Derived values

    @property
    def is_target_reached(self) -> bool:
        target = self.flags.target_accuracy
        return target is not None and self.best_accuracy >= target

    @property
    def is_complete(self) -> bool:
        return self.step >= self.flags.num_train_steps or self.is_target_reached

    @property
    def seq_length(self) -> int:
        return len(self.train_loader.first_example["input_ids"])

    @property
    def _num_predictions(self):
        return len(self.train_loader.first_example["masked_lm_ids"])

    @property
    def _micro_batch_size(self):
        return self.flags.train_batch_size // (self._num_shards * self.flags.steps_per_update)

    def _utilisation(self, sequences_per_second: float, mean_tokens: float) -> float | None:
        """Returns the MFU, without the FLOPs of padding, or None if the GPU's peak is unknown."""
        is_tensor_core = self.device.type == "cuda" and self.precision != "fp32"
        peak = peak_flops(torch.cuda.get_device_name(self.device)) if is_tensor_core else None
        if peak is None:
            return None
        flops = training_flops(
            self.config, mean_tokens, self._num_predictions * mean_tokens / self.seq_length
        )
        return sequences_per_second * flops / (peak * dist.get_world_size())

    def _description(self):
        flags, train_examples = self.flags, self.train_loader.num_records
        flops = training_flops(self.config, self.seq_length, self._num_predictions)
        shares = "processes" if flags.tp_size == 1 else f"groups of {flags.tp_size} processes"
        return (
            f"{self.parallel.num_parameters:,} parameters, "
            f"{self.parallel.bytes_per_process / 1e9:.1f} GB per process with gradients and "
            "optimizer, plus activations | "
            f"{flags.train_batch_size * flops / 1e12:,.3g} TFLOPs per step | "
            f"{dist.get_world_size()} x {self.device.type}, {flags.plugin}, {self.precision} | "
            f"batch {flags.train_batch_size} = {self._num_shards} {shares} x "
            f"{flags.steps_per_update} micro-batches x {self._micro_batch_size} examples\n"
            f"{train_examples:,} training examples | {flags.num_train_steps:,} steps = "
            f"{flags.num_train_steps * flags.train_batch_size / train_examples:.2f} epochs | "
            f"{self.eval_loader.num_records:,} evaluation examples, "
            f"evaluated every {self.eval_every_samples:,} samples"
        )

    # ----------------------------------------------------------------------------------------------
    # Updates, evaluation, checkpoints, end

    @property
    def samples(self) -> int:
        """Training examples so far."""
        return self.step * self.flags.train_batch_size

    @property
    def is_evaluation_due(self) -> bool:
        """Whether this step reached or passed a multiple of the interval, or is the last one."""
        is_last = self.step == self.flags.num_train_steps
        return is_last or self.samples % self.eval_every_samples < self.flags.train_batch_size

    def begin_update(self, rate: float) -> None:
        """Sets the learning rate and deletes the gradients of the last update.

        DataError, on rank 0, if something that was saved could not be written.
        """
        self.writer.raise_if_failed()
        due = (self.samples // self.eval_every_samples + 1) * self.eval_every_samples
        self.mlperf_log.block_start(self.samples, due - self.samples)
        self._update_start = self.train_loader.position
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()

    def record(self, results: torch.Tensor, rate: float, num_tokens: torch.Tensor) -> None:
        """results: float32 [3], losses and accuracy; rate: of learning; num_tokens: float32 []."""
        inner = self.parallel.inner_optimizer
        self.recorder.step(
            self.step, results, inner.gradient_norm, rate, num_tokens,
            inner.loss_scale.value if inner.loss_scale else None, self._update_start,
            self.train_loader.position,
        )  # fmt: skip

    def evaluate(self) -> None:
        started = time.monotonic()
        self.mlperf_log.eval_start(self.samples)
        metrics = self._metrics_of(self.eval_loader)
        if metrics["examples"] != self.eval_loader.num_records:
            raise DataError(
                f"{metrics['examples']} examples were evaluated, "
                f"expected {self.eval_loader.num_records}"
            )
        self.mlperf_log.eval_accuracy(self.samples, metrics["masked_lm_accuracy"])
        self.mlperf_log.eval_stop(self.samples)
        is_best = self.step > 0 and metrics["masked_lm_accuracy"] > self.best_accuracy
        if is_best:
            self.best_accuracy = metrics["masked_lm_accuracy"]
        if self.is_complete:
            self._log_run_stop()
        self.recorder.evaluation(self.step, metrics, time.monotonic() - started)
        if is_best:
            self._save_model("best", {"step": self.step} | metrics)

    def _log_run_stop(self):
        """The measured time ends: before anything is saved."""
        self.mlperf_log.run_stop("success" if self.is_target_reached else "aborted", self.samples)

    def _metrics_of(self, batches):
        # Without padding, compiled layers see a number of tokens, and no number of examples.
        needs_one_shape = self.flags.compile and not self.flags.unpad
        with self.parallel.autocast():
            return evaluate(
                self.parallel.module, batches, self.device, self.tokenizer.mask_token_id,
                self.parallel.data_group,
                self.flags.eval_batch_size if needs_one_shape else 0,
            )  # fmt: skip

    def save(self) -> None:
        """Writes a checkpoint, in the background."""
        log_bytes = {
            "metrics": self.recorder.bytes_written(),
            "mlperf": self.mlperf_log.bytes_written(),
        }

        def copy_state():
            shared = {
                "model": self.parallel.state_dict(), "loader": self.train_loader.state_dict(),
                "step": self.step, "best_accuracy": self.best_accuracy, "log_bytes": log_bytes,
                "eval_files": self.eval_loader.files, "flags": vars(self.flags),
            }  # fmt: skip
            return shared, gathered({"random": checkpoint.random_state(self.device)})

        def write(state):
            self.recorder.sync()
            self.mlperf_log.sync()
            shared, own_states = state
            keep_max = self.flags.keep_checkpoint_max
            checkpoint.save(self.checkpoints, shared["step"], shared, own_states, keep_max)

        self._write_in_background(copy_state, write)

    def _save_model(self, name, evaluation):
        """evaluation: of this model, a row of metrics.jsonl, for its card."""
        folder = os.path.join(self.flags.output_dir, name)
        record, step = {"flags": vars(self.flags), "data": self._data()}, self.step

        def write(weights):
            save_model(
                self.config, weights, folder, self.tokenizer,
                lambda beside: write_card(beside, self.config, record, step, evaluation),
            )  # fmt: skip

        self._write_in_background(self.parallel.whole_weights, write)

    def _write_in_background(self, copy, write):
        """Calls `copy()` now, and on rank 0 `write(<its result>)` while training continues.

        Waits first for what is being written, so that the memory holds one copy. Collective.
        """
        started = time.monotonic()
        self.wait_until_written()
        content = copy()
        if self.recorder.is_main:
            self.writer.start(lambda: write(content))
        self.recorder.pause(time.monotonic() - started)

    def wait_until_written(self) -> None:
        """DataError on every rank if something that was saved could not be written. Collective."""
        with shared_errors():
            self.writer.wait()

    def _draw_curves(self, rows):
        """Draws them for the run, and shows them beside its models."""
        folder = self.flags.output_dir
        picture = os.path.join(folder, "curves.png")
        plot_curves(rows, picture)
        for name in ("model", "best"):
            if os.path.exists(os.path.join(folder, name, CARD)):  # earlier versions wrote none
                try:
                    add_curves(os.path.join(folder, name), picture)
                except DataError as error:  # somebody has edited the card
                    self.recorder.say(f"warning: {error}")

    def finish(self) -> None:
        """Writes the model and the curves, and prints a list of the output files."""
        folder = self.flags.output_dir
        self._log_run_stop()  # of a finished run that was started again
        if self.step > 0:
            is_main = self.recorder.is_main
            rows = read_metrics(os.path.join(folder, "metrics.jsonl")) if is_main else []
            self._save_model("model", last_evaluation(rows))
        self.wait_until_written()
        if not self.recorder.is_main:
            return
        if self.step > 0:
            self._draw_curves(rows)
        if self.is_target_reached:
            self.recorder.say(
                f"reached the target accuracy {self.flags.target_accuracy} at step {self.step:,}"
            )
        names = sorted(name for name in os.listdir(folder) if name[0] != ".")
        self.recorder.say(f"done: {', '.join(os.path.join(folder, name) for name in names)}")
