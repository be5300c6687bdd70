"""The model, its optimizers and plugins, checkpoints, evaluation and logs."""
