"""The model, its optimizers and plugins, checkpoints, evaluation and logs."""

from bert.common import quiet_imports  # noqa: F401  before any module here imports a framework
