"""MLPerf's log of a training run: lines `:::MLLOG {json}`, as the compliance checker of the package
mlperf-logging reads them.

python -m mlperf_logging.compliance_checker --usage training --ruleset 4.1.0 <output_dir>/mlperf.log

Keys and their rules: the package's mllog/constants.py and compliance_checker/training_4.1.0. The
lines are written here and not with the package's own writer: that one goes through Python's
logging, where a full disk is a message and not an error, and a log could not be cut back to a
checkpoint. The package then judges in the tests, independent of this writer.

In BERT's logs the "epochs" of MLPerf's keys are training examples, called samples here.
"""

import json
import os
import time

from bert.common.files import DataError

PREFIX = ":::MLLOG "
CLOSED_TARGET = (
    0.720  # masked LM accuracy; MLPerf Training rules, and the checker's closed_bert.yaml
)
CLOSED_SHAPE = 512, 76  # tokens and predictions of an example


def division(
    optimizer, target_accuracy, max_sequence_length, max_predictions_per_seq, has_init_checkpoint
):
    """Returns "closed" if the run can be one of MLPerf's closed division by what is known here,
    otherwise "open".

    Whether checkpoint, model and data are MLPerf's own is for who submits it to say.
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
    *, optimizer, learning_rate, beta_1, beta_2, epsilon, weight_decay, max_grad_norm, poly_power,
    training_steps, warmup_steps, start_warmup_step, global_batch_size, gradient_accumulation_steps,
    max_sequence_length, max_predictions_per_seq, seed, train_samples, eval_samples,
):  # fmt: skip
    """Returns the settings of a run, a dict by MLPerf's keys, in the order of the log.

    optimizer: "lamb" or "adamw". learning_rate: the peak. global_batch_size: examples of an update
    over all processes.
    train_samples, eval_samples: examples in the data sets.
    """
    decay_key = {"lamb": "opt_lamb_weight_decay_rate", "adamw": "opt_adamw_weight_decay"}[optimizer]
    return {
        "seed": seed,
        "global_batch_size": global_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "max_sequence_length": max_sequence_length,
        "max_predictions_per_seq": max_predictions_per_seq,
        "train_samples": train_samples,
        "eval_samples": eval_samples,
        "opt_name": optimizer,
        "opt_base_learning_rate": learning_rate,
        "opt_end_learning_rate": 0.0,
        "opt_learning_rate_training_steps": training_steps,
        "opt_learning_rate_warmup_steps": warmup_steps,
        "num_warmup_steps": warmup_steps,  # the checker wants both keys
        "start_warmup_step": start_warmup_step,
        "opt_gradient_clip_norm": max_grad_norm,
        f"opt_{optimizer}_beta_1": beta_1,
        f"opt_{optimizer}_beta_2": beta_2,
        f"opt_{optimizer}_epsilon": epsilon,
        decay_key: weight_decay,
        f"opt_{optimizer}_learning_rate_decay_poly_power": poly_power,
    }


class MLPerfLog:
    """Rank 0's mlperf.log; the logs of other ranks do nothing.

    A resumed run makes the same calls as one that begins: what must stand in the log once and
    is in it already is not written again. So a run that was stopped and resumed leaves one log,
    whose time includes the pause.
    """

    def __init__(self, path, is_main, kept_bytes=0):
        """A resumed run gives how much of the log belongs to its checkpoint (`bytes_written()`
        then).

        With 0, or if the file is gone, the log begins anew. DataError if it is shorter than it was.
        """
        self._file = None
        self._block_start = None  # samples at which the open block began
        self._is_begun = self._is_resumed = False
        self._dropped = b""  # what was behind kept_bytes, until something else is written
        if not is_main:
            return
        if kept_bytes and os.path.exists(path):
            self._take_over(path, kept_bytes)
        else:
            kept_bytes = 0
        self._file = open(path, "ab", buffering=0)
        self._file.truncate(kept_bytes)

    def _take_over(self, path, kept_bytes):
        """Finds out where the log stands that belongs to a checkpoint."""
        with open(path, "rb") as file:
            content = file.read()
        if len(content) < kept_bytes:
            raise DataError(
                f"{path}: {len(content):,} bytes, expected at least the {kept_bytes:,} that belong "
                "to the checkpoint; put the whole file back, or remove it: "
                "the log then begins at the checkpoint"
            )
        for event in _events(path, content[:kept_bytes]):
            if event["key"] == "block_start":
                self._block_start = event["metadata"]["first_epoch_num"]
            elif event["key"] == "block_stop":
                self._block_start = None
        self._is_begun = self._is_resumed = True
        self._dropped = content[kept_bytes:]

    def bytes_written(self):
        """Returns the size of the log (0 on other ranks than 0), for the checkpoint; so much of it
        is on the disk then.
        """
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self):
        if self._file is not None:
            self._file.close()
            self._file = None

    # The events, in the order in which a run has them

    def init_start(
        self, division, org="reference", platform="reference", status="onprem", cache_cleared=False
    ):
        """The preparation begins.

        `cache_cleared`: whether the system's caches were emptied, which train.py cannot do.
        """
        if self._is_begun:
            return
        submission = {
            "benchmark": "bert",
            "division": division,
            "org": org,
            "platform": platform,
            "status": status,
        }
        for name, value in submission.items():
            self._event(f"submission_{name}", value)
        self._event("cache_clear", cache_cleared)
        self._event("init_start", event_type="INTERVAL_START")

    def hyper_parameters(self, values):
        """Takes the dict of `hyper_parameters`."""
        for key, value in values.items() if not self._is_begun else ():
            self._event(key, value)

    def init_stop(self):
        """The preparation is over.

        MLPerf's rule: training data are not touched before run_start.
        """
        if not self._is_begun:
            self._event("init_stop", event_type="INTERVAL_END")

    def run_start(self):
        """The measured time begins."""
        if not self._is_begun:
            self._event("run_start", event_type="INTERVAL_START")
            self._is_begun = True

    def block_start(self, samples, count):
        """Training continues after `samples`, for the next `count` until an evaluation; nothing if
        that is known already.

        May be called before every step.
        """
        if self._is_resumed:
            # MLPerf has no key for it; the checker takes any. Without it the pause would look like
            # slow training.
            self._event("run_resumed", metadata={"samples_count": samples})
            self._is_resumed = False
        if self._block_start is None:
            self._block_start = samples
            self._event(
                "block_start",
                metadata={"first_epoch_num": samples, "epoch_count": count},
                event_type="INTERVAL_START",
            )

    def block_stop(self, samples):
        """Training pauses after `samples`; nothing if no block is open.

        An evaluation and the end of the run call it.
        """
        if self._block_start is not None:
            first, self._block_start = self._block_start, None
            metadata = {"first_epoch_num": first, "epoch_count": samples - first}
            self._event("block_stop", metadata=metadata, event_type="INTERVAL_END")

    def eval_start(self, samples):
        self.block_stop(samples)
        self._event("eval_start", metadata={"epoch_num": samples}, event_type="INTERVAL_START")

    def eval_accuracy(self, samples, accuracy):
        """Takes the masked LM accuracy after `samples`."""
        self._event("eval_accuracy", accuracy, {"epoch_num": samples})

    def eval_stop(self, samples):
        self._event("eval_stop", metadata={"epoch_num": samples}, event_type="INTERVAL_END")

    def run_stop(self, status, samples):
        """The measured time ends. status: "success" (target reached) or "aborted".

        The command of a finished run, given once more, finds nothing to do: the time of the end
        stays the first one.
        """
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
        }
        event["metadata"] = metadata or {}
        self._write(f"{PREFIX}{json.dumps(event, allow_nan=False)}\n".encode())

    def _write(self, data):
        self._dropped = b""
        if self._file is not None:
            self._file.write(data)


def _events(path, content):
    """Returns the events, dicts, of a log's bytes; DataError if it ends or goes wrong inside a
    line.
    """
    events = []
    for number, line in enumerate(
        content.decode(errors="replace").splitlines(keepends=True), start=1
    ):
        try:
            if not (line.startswith(PREFIX) and line.endswith("\n")):
                raise ValueError
            events.append(json.loads(line[len(PREFIX) :]))
        except ValueError:
            raise DataError(
                f"{path}: line {number}: found {line[:60]!r}, expected {PREFIX}{{...}}; "
                "put back the file that belongs to the checkpoint, or remove it: "
                "the log then begins at the checkpoint"
            ) from None
    return events


def _is_run_stop(content, metadata):
    """Whether these bytes are whole lines and end with a run_stop of this metadata."""
    last = content.splitlines()[-1].decode(errors="replace")
    if not (content.endswith(b"\n") and last.startswith(PREFIX)):
        return False
    event = json.loads(last[len(PREFIX) :])
    return event["key"] == "run_stop" and event["metadata"] == metadata
