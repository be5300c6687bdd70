"""MLPerf's log of a training run: lines `:::MLLOG {json}`, for the compliance checker of the
package mlperf-logging.

python -m mlperf_logging.compliance_checker --usage training --ruleset 4.1.0 <output_dir>/mlperf.log

Keys and their rules: the package's mllog/constants.py and compliance_checker/training_4.1.0. The
package's own writer is not used: it goes through Python's logging, where a full disk is a message
and not an error, and its log cannot be truncated to the state of a checkpoint. So in the tests the
package's checker is independent of this writer.

In BERT's logs the "epochs" of MLPerf's keys are training examples, called samples here.
"""

import argparse
import io
import json
import os
import time
from typing import Any

from bert.common.files import DataError

PREFIX = ":::MLLOG "
# Masked LM accuracy, from MLPerf's Training rules and the checker's closed_bert.yaml.
CLOSED_TARGET = 0.720
CLOSED_SHAPE = 512, 76  # tokens and predictions of an example


def division(
    optimizer: str,
    target_accuracy: float | None,
    max_sequence_length: int,
    max_predictions_per_seq: int,
    has_init_checkpoint: bool,
) -> str:
    """Returns "closed" if these settings are allowed in MLPerf's closed division, else "open".

    The submitter must know whether checkpoint, model and data are MLPerf's own.
    """
    is_closed = (
        optimizer == "lamb"
        and target_accuracy is not None
        and target_accuracy >= CLOSED_TARGET
        and (max_sequence_length, max_predictions_per_seq) == CLOSED_SHAPE
        and has_init_checkpoint
    )
    return "closed" if is_closed else "open"


def hyper_parameters(
    flags: argparse.Namespace,
    max_sequence_length: int,
    max_predictions_per_seq: int,
    train_samples: int,
    eval_samples: int,
) -> dict[str, Any]:
    """Returns the settings of a run, a dict by MLPerf's keys, in the order of the log.

    flags: train.py's. train_samples, eval_samples: examples in the data sets.
    """
    optimizer = flags.optimizer
    decay_key = {"lamb": "opt_lamb_weight_decay_rate", "adamw": "opt_adamw_weight_decay"}[optimizer]
    return {
        "seed": flags.seed,
        "global_batch_size": flags.train_batch_size,
        "gradient_accumulation_steps": flags.steps_per_update,
        "max_sequence_length": max_sequence_length,
        "max_predictions_per_seq": max_predictions_per_seq,
        "train_samples": train_samples,
        "eval_samples": eval_samples,
        "opt_name": optimizer,
        "opt_base_learning_rate": flags.learning_rate,
        "opt_end_learning_rate": 0.0,
        "opt_learning_rate_training_steps": flags.num_train_steps,
        "opt_learning_rate_warmup_steps": flags.num_warmup_steps,
        "num_warmup_steps": flags.num_warmup_steps,  # the checker needs both keys
        "start_warmup_step": flags.start_warmup_step,
        "opt_gradient_clip_norm": flags.max_grad_norm,
        f"opt_{optimizer}_beta_1": flags.lamb_beta_1,
        f"opt_{optimizer}_beta_2": flags.lamb_beta_2,
        f"opt_{optimizer}_epsilon": 10**flags.log_epsilon,
        decay_key: flags.lamb_weight_decay_rate,
        f"opt_{optimizer}_learning_rate_decay_poly_power": flags.poly_power,
    }


class MLPerfLog:
    """Rank 0's mlperf.log; the logs of other ranks do nothing.

    A resumed run makes the same calls as a new one; what may be in the log only once is not written
    again. So a run that was stopped and resumed leaves one log, whose time includes the pause.
    """

    def __init__(self, path: str, is_main: bool, kept_bytes: int = 0):
        """kept_bytes: how much of the log belongs to the checkpoint of a resumed run, from
        `bytes_written()`.

        With 0, or if the file is gone, a new log starts. DataError if the file is shorter.
        """
        self._file: io.FileIO | None = None
        self._block_start: int | None = None  # samples at which the open block began
        self._is_started = self._is_resumed = False
        self._bytes_before_end: int | None = None  # size without run_stop, once that is written
        self._dropped = b""  # content after kept_bytes, until something else is written
        if not is_main:
            return
        if kept_bytes and os.path.exists(path):
            self._read_state(path, kept_bytes)
        else:
            kept_bytes = 0
        self._file = open(path, "ab", buffering=0)
        self._file.truncate(kept_bytes)

    def _read_state(self, path, kept_bytes):
        """Sets this object's state from the log that belongs to a checkpoint."""
        with open(path, "rb") as file:
            content = file.read()
        if len(content) < kept_bytes:
            raise DataError(
                f"{path}: {len(content):,} bytes, expected at least the {kept_bytes:,} that belong "
                "to the checkpoint; put the whole file back, or remove it: "
                "the log then starts at the checkpoint"
            )
        for event in _events(path, content[:kept_bytes]):
            if event["key"] == "block_start":
                self._block_start = event["metadata"]["first_epoch_num"]
            elif event["key"] == "block_stop":
                self._block_start = None
        self._is_started = self._is_resumed = True
        self._dropped = content[kept_bytes:]

    def bytes_written(self) -> int:
        """Returns the log's size for a checkpoint (0 on ranks except 0).

        Without the run's end: a run that is started again with a higher target trains on.
        """
        return self._size() if self._bytes_before_end is None else self._bytes_before_end

    def _size(self):
        return os.fstat(self._file.fileno()).st_size if self._file is not None else 0

    def sync(self) -> None:
        """Brings the log to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # The events, in the order of a run

    def init_start(self, division: str) -> None:
        """The preparation begins."""
        if self._is_started:
            return
        self._event("submission_benchmark", "bert")
        self._event("submission_division", division)
        self._event("submission_org", "reference")
        self._event("submission_platform", "reference")
        self._event("submission_status", "onprem")
        self._event("cache_clear", False)  # emptying the system's caches needs root
        self._event("init_start", event_type="INTERVAL_START")

    def hyper_parameters(self, values: dict[str, Any]) -> None:
        """Takes the dict of `hyper_parameters`."""
        if not self._is_started:
            for key, value in values.items():
                self._event(key, value)

    def init_stop(self) -> None:
        """The preparation is over.

        MLPerf's rule: training data are not touched before run_start.
        """
        if not self._is_started:
            self._event("init_stop", event_type="INTERVAL_END")

    def run_start(self) -> None:
        """The measured time begins."""
        if not self._is_started:
            self._event("run_start", event_type="INTERVAL_START")
            self._is_started = True

    def block_start(self, samples: int, count: int) -> None:
        """Training continues after `samples`, for the next `count` until an evaluation.

        May be called before every step: writes nothing if a block is open.
        """
        if self._is_resumed:
            # MLPerf has no key for this; the checker accepts any. Without it the pause would look
            # like slow training.
            self._event("run_resumed", metadata={"samples_count": samples})
            self._is_resumed = False
        if self._block_start is None:
            self._block_start = samples
            self._event(
                "block_start",
                metadata={"first_epoch_num": samples, "epoch_count": count},
                event_type="INTERVAL_START",
            )

    def block_stop(self, samples: int) -> None:
        """Ends the open block, if any: an evaluation or the end of the run follows `samples`."""
        if self._block_start is not None:
            first, self._block_start = self._block_start, None
            metadata = {"first_epoch_num": first, "epoch_count": samples - first}
            self._event("block_stop", metadata=metadata, event_type="INTERVAL_END")

    def eval_start(self, samples: int) -> None:
        self.block_stop(samples)
        self._event("eval_start", metadata={"epoch_num": samples}, event_type="INTERVAL_START")

    def eval_accuracy(self, samples: int, accuracy: float) -> None:
        """Takes the masked LM accuracy after `samples`."""
        self._event("eval_accuracy", accuracy, {"epoch_num": samples})

    def eval_stop(self, samples: int) -> None:
        self._event("eval_stop", metadata={"epoch_num": samples}, event_type="INTERVAL_END")

    def run_stop(self, status: str, samples: int) -> None:
        """The measured time ends. status: "success" (target reached) or "aborted".

        Only the first call counts. If a finished run is started again, the log keeps the time of
        its first end.
        """
        if self._bytes_before_end is not None:
            return
        self._bytes_before_end = self._size()
        dropped, metadata = self._dropped, {"status": status, "samples_count": samples}
        if dropped and _is_run_stop(dropped, metadata):
            self._write(dropped)
            return
        self.block_stop(samples)
        self._event("run_stop", metadata=metadata, event_type="INTERVAL_END")

    # Lines

    def _event(self, key, value=None, metadata=None, event_type="POINT_IN_TIME"):
        event = {
            "namespace": "",
            "time_ms": int(time.time() * 1000),
            "event_type": event_type,
            "key": key,
            "value": value,
            "metadata": metadata or {},
        }
        self._write(f"{PREFIX}{json.dumps(event, allow_nan=False)}\n".encode())

    def _write(self, data):
        self._dropped = b""
        if self._file is not None:
            self._file.write(data)


def _events(path, content):
    """Returns the events (dicts) of a log's bytes; DataError if a line is incomplete or wrong."""
    events = []
    lines = content.decode(errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not (line.startswith(PREFIX) and line.endswith("\n")):
                raise ValueError
            events.append(json.loads(line[len(PREFIX) :]))
        except ValueError:
            raise DataError(
                f"{path}: line {number}: found {line[:60]!r}, expected {PREFIX}{{...}}; "
                "put back the file that belongs to the checkpoint, or remove it: "
                "the log then starts at the checkpoint"
            ) from None
    return events


def _is_run_stop(content, metadata):
    """Whether these bytes are complete lines, the last one a run_stop with this metadata."""
    last = content.splitlines()[-1].decode(errors="replace")
    if not (content.endswith(b"\n") and last.startswith(PREFIX)):
        return False
    event = json.loads(last[len(PREFIX) :])
    return event["key"] == "run_stop" and event["metadata"] == metadata
