"""A training run: what it is made of, where it stands, what it writes."""

import math
import os
import time

import numpy as np
import torch
import torch.distributed as dist

from bert.common.files import DataError, atomic_writer
from bert.training import checkpoint
from bert.training.distributed import check_alike, shared_errors
from bert.training.expected_curve import ExpectedCurve
from bert.training.flag_checks import (
    FLAGS_OF_A_RANK,
    as_recorded,
    flags_path,
    indexes_of,
    is_folder_of_indexes,
)
from bert.training.flops import peak_flops, training_flops
from bert.training.metrics import Recorder, evaluate, plot_curves
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
    save_model,
)
from bert.training.optimization import AdamWeightDecay, Lamb, LossScale, parameter_groups
from bert.training.plugins import parallelize
from bert_dali_dataloader import build_dali_eval, build_dali_train


def mlperf_eval_interval(batch_size):
    """Samples between evaluations (MLPerf Training rules, BERT)."""
    return math.floor(0.05 * (230.23 * batch_size + 3_000_000) / 25_000) * 25_000


class Run:
    """What a training run is made of and what it has come to.

    Every rank calls the same methods at the same step.
    """

    def __init__(self, flags, config, device):
        self.flags, self.config, self.device = flags, config, device
        # ColossalAI puts the processes that share tensors, and so examples, next to each other.
        self._shard_id, self._num_shards = (
            dist.get_rank() // flags.tp_size,
            dist.get_world_size() // flags.tp_size,
        )
        self.checkpoints = os.path.join(flags.output_dir, "checkpoints")
        found = checkpoint.newest_valid(self.checkpoints)
        self.train_loader, self.eval_loader = self._build_loaders()
        self._check_ranks()
        self.tokenizer = load_tokenizer(flags.vocab_file, flags.do_lower_case, config)
        self.eval_every_samples = flags.eval_every_samples or mlperf_eval_interval(
            flags.train_batch_size
        )
        self.precision = (
            flags.precision
            if flags.precision != "auto"
            else "bf16"
            if device.type == "cuda"
            else "fp32"
        )
        # The same on every rank, then dropout of its own.
        module = self._build_module(None if found else flags.init_checkpoint)
        torch.manual_seed(flags.seed + 1 + self._shard_id)
        self.parallel = parallelize(
            flags.plugin,
            module,
            self._build_optimizer(module),
            device,
            self.precision,
            flags.tp_size,
        )
        self.optimizer = self.parallel.optimizer
        self.step, self.best_accuracy = 0, -1.0
        self._begin(found)

    # ----------------------------------------------------------------------------------------------
    # Its parts

    def _build_loaders(self):
        flags = self.flags
        common = {
            "shard_id": self._shard_id, "num_shards": self._num_shards,
            "num_threads": flags.num_threads, "cuda": self.device.type == "cuda",
            "device_id": self.device.index, "seed": flags.seed,
            "vocab_size": self.config.vocab_size,
        }  # fmt: skip

        def build(build_dali, split, **options):
            indexes = indexes_of(flags, split)
            if is_folder := is_folder_of_indexes(indexes):
                os.makedirs(indexes, exist_ok=True)
            files = getattr(flags, f"tfrecord_{split}")
            return build_dali(files, indexes, build_missing_indexes=is_folder, **options, **common)

        return (
            build(
                build_dali_train, "train", batch_size=self._micro_batch_size, shuffle=flags.shuffle
            ),
            build(build_dali_eval, "eval", batch_size=flags.eval_batch_size),
        )

    def _check_ranks(self):
        """DataError where a rank has other flags or data than the others: it would hang, or train
        on what nobody asked for.
        """
        files = {
            "training files": self.train_loader.files,
            "evaluation files": self.eval_loader.files,
        }
        flags = {
            f"--{name}": value
            for name, value in vars(self.flags).items()
            if name not in FLAGS_OF_A_RANK
        }
        check_alike(flags | {"--bert_config_file": config_values(self.config)} | files)

    def _build_module(self, init_checkpoint):
        flags = self.flags
        module = (
            load_model(init_checkpoint, self.config)
            if init_checkpoint
            else build_model(self.config)
        )
        if flags.unpad:
            leave_out_padding(module)
        if flags.gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        if flags.compile:
            compile_layers(module)
        return module

    def _build_optimizer(self, module):
        flags = self.flags
        options = {
            "betas": (flags.lamb_beta_1, flags.lamb_beta_2), "eps": 10**flags.log_epsilon,
            "max_grad_norm": flags.max_grad_norm,
            "loss_scale": LossScale(self.device) if self.precision == "fp16" else None,
        }  # fmt: skip
        groups = parameter_groups(module, flags.lamb_weight_decay_rate)
        if flags.optimizer == "lamb":
            return Lamb(groups, **options)
        return AdamWeightDecay(groups, bias_correction=flags.adam_bias_correction, **options)

    # ----------------------------------------------------------------------------------------------
    # Going on

    def _begin(self, found):
        """Goes on from a checkpoint, (path, number of ranks), if one was found; opens the logs."""
        random_state, log_bytes = checkpoint.random_state(self.device), {}
        self._settle_buckets()
        if found:
            path, num_ranks = found
            shared = checkpoint.load_shared(path)
            self.parallel.load_state_dict(shared["model"])
            self.train_loader.load_state_dict(shared["loader"])
            self.step, self.best_accuracy, log_bytes = (
                shared[name] for name in ("step", "best_accuracy", "log_bytes")
            )
            are_evaluations_comparable = (
                shared.get("eval_files", self._eval_files) == self._eval_files
            )
            if not are_evaluations_comparable:
                self.best_accuracy = -1.0
            if (num_ranks, shared["flags"]["tp_size"]) == (
                dist.get_world_size(),
                self.flags.tp_size,
            ):
                random_state = checkpoint.load_own(path)["random"]
        checkpoint.restore_random_state(random_state, self.device)
        with shared_errors():
            if dist.get_rank() == 0:
                with atomic_writer(flags_path(self.flags)) as file:
                    file.write(as_recorded(self.flags, self.config))
            self._open_logs(log_bytes)
        self.recorder.say(self._description())
        if found:
            self.recorder.say(f"resumes from {path}, after step {self.step:,}")
            if not are_evaluations_comparable:
                self.recorder.say(
                    "warning: the evaluation examples are others than before, "
                    "and so are accuracies; best/ begins anew"
                )

    def _open_logs(self, kept_bytes):
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
        self.mlperf_log.hyper_parameters(
            hyper_parameters(
                optimizer=flags.optimizer, learning_rate=flags.learning_rate,
                beta_1=flags.lamb_beta_1, beta_2=flags.lamb_beta_2, epsilon=10**flags.log_epsilon,
                weight_decay=flags.lamb_weight_decay_rate, max_grad_norm=flags.max_grad_norm,
                poly_power=flags.poly_power, training_steps=flags.num_train_steps,
                warmup_steps=flags.num_warmup_steps, start_warmup_step=flags.start_warmup_step,
                global_batch_size=flags.train_batch_size,
                gradient_accumulation_steps=flags.steps_per_update,
                max_sequence_length=self.seq_length, max_predictions_per_seq=self._num_predictions,
                seed=flags.seed, train_samples=self.train_loader.num_records,
                eval_samples=self.eval_loader.num_records,
            )
        )  # fmt: skip
        self.mlperf_log.init_stop()
        self.mlperf_log.run_start()

    def _settle_buckets(self):
        """Two forward and backward passes over made-up examples, without an update.

        Behind its first one, the data-parallel model lays out anew the buckets in which it adds up
        gradients. Done before the first step, it makes a resumed run add in the same order as
        one that was never stopped.
        """
        batch = {
            name: torch.tensor(np.ones_like(column))
            .expand(self._micro_batch_size, -1)
            .to(self.device)
            for name, column in self.train_loader.first_example.items()
        }
        for _ in range(2):
            with self.parallel.autocast():
                logits = predict(self.parallel.model, batch)
            self.parallel.backward(sum(loss_sums(logits, batch)))
            self.optimizer.zero_grad()

    # ----------------------------------------------------------------------------------------------
    # Derived values

    @property
    def is_target_reached(self):
        target = self.flags.target_accuracy
        return target is not None and self.best_accuracy >= target

    @property
    def is_complete(self):
        return self.step >= self.flags.num_train_steps or self.is_target_reached

    @property
    def seq_length(self):
        return len(self.train_loader.first_example["input_ids"])

    @property
    def _eval_files(self):
        """What tells other evaluation examples from these."""
        return self.eval_loader.files

    @property
    def _num_predictions(self):
        return len(self.train_loader.first_example["masked_lm_ids"])

    @property
    def _micro_batch_size(self):
        return self.flags.train_batch_size // (self._num_shards * self.flags.steps_per_update)

    def _utilisation(self, sequences_per_second, mean_tokens):
        """MFU, counting the arithmetic that tokens need and not what padding costs, or None where
        the peak is not known.
        """
        is_tensor_core = self.device.type == "cuda" and self.precision != "fp32"
        peak = peak_flops(torch.cuda.get_device_name(self.device)) if is_tensor_core else None
        if peak is None:
            return None
        flops = training_flops(
            self.config, mean_tokens, self._num_predictions * mean_tokens / self.seq_length
        )
        return sequences_per_second * flops / (peak * dist.get_world_size())

    def _description(self):
        flags, world_size, loaders = (
            self.flags,
            dist.get_world_size(),
            (self.train_loader, self.eval_loader),
        )
        train_examples, eval_examples = (loader.num_records for loader in loaders)
        flops = training_flops(self.config, self.seq_length, self._num_predictions)
        shares = "processes" if flags.tp_size == 1 else f"groups of {flags.tp_size} processes"
        lasting, in_update = (size / 1e9 for size in self.parallel.bytes_per_process)
        return (
            f"{self.parallel.num_parameters:,} parameters, "
            f"{lasting:.1f} GB a process with gradients and optimizer; besides, activations, "
            f"and after them {in_update:.1f} GB for the update | "
            f"{flags.train_batch_size * flops / 1e12:,.3g} TFLOPs a step | "
            f"{world_size} x {self.device.type}, {flags.plugin}, {self.precision} | "
            f"batch {flags.train_batch_size} = {self._num_shards} {shares} x "
            f"{flags.steps_per_update} micro-batches x {self._micro_batch_size} examples\n"
            f"{train_examples:,} training examples | {flags.num_train_steps:,} steps = "
            f"{flags.num_train_steps * flags.train_batch_size / train_examples:.2f} epochs | "
            f"{eval_examples:,} evaluation examples, "
            f"evaluated every {self.eval_every_samples:,} samples"
        )

    # ----------------------------------------------------------------------------------------------
    # What it does beside steps

    @property
    def samples(self):
        """Training examples up to here."""
        return self.step * self.flags.train_batch_size

    @property
    def is_evaluation_due(self):
        """Whether the last step reached or passed a multiple of the interval, or was the last of
        all.
        """
        is_last = self.step == self.flags.num_train_steps
        return is_last or self.samples % self.eval_every_samples < self.flags.train_batch_size

    def begin_update(self, rate):
        """Sets the learning rate and forgets the gradients of the last update."""
        due = (self.samples // self.eval_every_samples + 1) * self.eval_every_samples
        self.mlperf_log.block_start(self.samples, due - self.samples)
        self._update_start = self.train_loader.position
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()

    def record(self, results, rate, num_tokens):
        """Records the step just done: float32 [3], both losses and the accuracy over its examples;
        its rate; its tokens.
        """
        inner = self.parallel.inner_optimizer
        self.recorder.step(
            self.step, results, inner.gradient_norm, rate, num_tokens,
            inner.loss_scale and inner.loss_scale.value, self._update_start,
            self.train_loader.position,
        )  # fmt: skip

    def evaluate(self):
        started = time.monotonic()
        self.mlperf_log.eval_start(self.samples)
        with self.parallel.autocast():
            metrics = evaluate(
                self.parallel.module, self.eval_loader, self.device, self.parallel.data_group
            )
        if metrics["examples"] != self.eval_loader.num_records:
            raise DataError(
                f"{metrics['examples']} examples were evaluated, "
                f"there are {self.eval_loader.num_records}"
            )
        self.mlperf_log.eval_accuracy(self.samples, metrics["masked_lm_accuracy"])
        self.mlperf_log.eval_stop(self.samples)
        self.recorder.evaluation(self.step, metrics, time.monotonic() - started)
        if self.step > 0 and metrics["masked_lm_accuracy"] > self.best_accuracy:
            self.best_accuracy = metrics["masked_lm_accuracy"]
            self._save_model("best")

    def _save_model(self, name):
        weights = self.parallel.whole_weights()
        with shared_errors():
            if self.recorder.is_main:
                save_model(
                    self.config, weights, os.path.join(self.flags.output_dir, name), self.tokenizer
                )

    def save(self):
        log_bytes = {
            "metrics": self.recorder.bytes_written(),
            "mlperf": self.mlperf_log.bytes_written(),
        }
        started = time.monotonic()
        shared = {
            "model": self.parallel.state_dict(), "loader": self.train_loader.state_dict(),
            "step": self.step, "best_accuracy": self.best_accuracy, "eval_files": self._eval_files,
            "flags": vars(self.flags), "log_bytes": log_bytes,
        }  # fmt: skip
        own = {"random": checkpoint.random_state(self.device)}
        checkpoint.save(self.checkpoints, self.step, shared, own, self.flags.keep_checkpoint_max)
        self.recorder.pause(time.monotonic() - started)

    def finish(self):
        """Writes the model and the curves, and says what there is."""
        folder = self.flags.output_dir
        self.mlperf_log.run_stop("success" if self.is_target_reached else "aborted", self.samples)
        if self.step > 0:
            self._save_model("model")
        if not self.recorder.is_main:
            return
        if self.step > 0:
            plot_curves(os.path.join(folder, "metrics.jsonl"), os.path.join(folder, "curves.png"))
        if self.is_target_reached:
            self.recorder.say(
                f"reached the target accuracy {self.flags.target_accuracy} at step {self.step:,}"
            )
        names = sorted(name for name in os.listdir(folder) if name[0] != ".")
        self.recorder.say(f"done: {', '.join(os.path.join(folder, name) for name in names)}")
