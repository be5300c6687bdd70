"""The choices of train.py's flags, for --help, which waits for no framework."""

DEVICES = ("auto", "cpu", "cuda")
OPTIMIZERS = ("lamb", "adamw")
PLUGINS = ("ddp", "zero1", "hybrid")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # names in torch
