"""Scalars of a run for TensorBoard: tensorboard --logdir <output_dir>/tensorboard

An event file is a TFRecord file of Event messages. It is written with `bert.examples.tfrecord` and
the messages of the package tensorboard: 0.03 s of import, and a full disk is an error at once.
torch.utils.tensorboard would import TensorFlow (5 s and its banners); tensorboardX writes from a
thread that dies silently, and its queue then stops the training.
"""

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from bert.examples.tfrecord import frame

# TensorBoard reads each file with "tfevents" in its name, in the order of the names. They contain a
# number and not the time, because two runs may start in the same second.
_FILE_NAME = "events.out.tfevents.{:06d}"
_FILE_PATTERN = re.compile(r"events\.out\.tfevents\.(\d+)")
# Of tensorflow/core/util/events_writer.h; without this first event SessionLog is ignored.
_FILE_VERSION = "brain.Event:2"


class TensorboardLog:
    """One event file, written by rank 0; a new one each time the run resumes."""

    def __init__(self, folder: str, purge_step: int):
        """purge_step: TensorBoard hides what older files contain from here on; 0 for a new run."""
        os.makedirs(folder, exist_ok=True)
        numbers = [
            int(match[1]) for name in os.listdir(folder) if (match := _FILE_PATTERN.fullmatch(name))
        ]
        self._file = open(
            os.path.join(folder, _FILE_NAME.format(max(numbers, default=0) + 1)), "xb"
        )
        self._write(file_version=_FILE_VERSION)
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def step(self, step: int, values: Mapping[str, float | None]) -> None:
        """Takes the results of a training step: numbers by name; None is left out."""
        self._scalars("train", step, values)

    def evaluation(self, step: int, values: Mapping[str, float | None]) -> None:
        """Takes the results of the evaluation after a step, and flushes."""
        self._scalars("evaluation", step, values)
        self.flush()

    def flush(self) -> None:
        """Writes all events to the file, where TensorBoard sees them."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _scalars(self, group, step, values):
        scalars = [
            {"tag": f"{group}/{name}", "simple_value": value}
            for name, value in values.items()
            if value is not None
        ]
        self._write(step=step, summary={"value": scalars})

    def _write(self, **event: Any):
        self._file.write(frame(Event(wall_time=time.time(), **event).SerializeToString()))
