"""Scalars of a run for TensorBoard: tensorboard --logdir <output_dir>/tensorboard

An event file is a TFRecord file of Event messages, so it is written with `bert.examples.tfrecord`
and the messages of the package
tensorboard: 0.03 s of import, and a full disk is an error at once. torch.utils.tensorboard would
import TensorFlow (5 s and its banners); tensorboardX writes from a thread that dies silently, and
its queue then stops the training.
"""

import os
import re
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from bert.examples.tfrecord import frame

# TensorBoard takes each file with "tfevents" in its name, in the order of the names: hence a number
# and not the time, which two runs within a second share.
_FILE_NAME = "events.out.tfevents.{:06d}"
_FILE_PATTERN = re.compile(r"events\.out\.tfevents\.(\d+)")
# of tensorflow/core/util/events_writer.h; without this first event SessionLog counts for nothing
_FILE_VERSION = "brain.Event:2"


class TensorboardLog:
    """One event file; rank 0 alone makes one, a new one each time the run resumes."""

    def __init__(self, folder, purge_step):
        """purge_step: first step that may be written now; what older files hold from it on is not
        shown any more.

        That is the step after the checkpoint, or 0 for a run that begins.
        """
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

    def step(self, step, values):
        """Takes what a training step gave: numbers by name, None for one that there is not."""
        self._scalars("train", step, values)

    def evaluation(self, step, values):
        """Takes what the evaluation after a step gave: numbers by name.

        They are to be seen at once.
        """
        self._scalars("evaluation", step, values)
        self.flush()

    def flush(self):
        """Hands all events over to the system, where TensorBoard sees them."""
        self._file.flush()

    def close(self):
        self._file.close()

    def _scalars(self, group, step, values):
        scalars = [
            {"tag": f"{group}/{name}", "simple_value": value}
            for name, value in values.items()
            if value is not None
        ]
        self._write(step=step, summary={"value": scalars})

    def _write(self, **event):
        self._file.write(frame(Event(wall_time=time.time(), **event).SerializeToString()))
