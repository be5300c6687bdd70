"""Reads the weights of a TensorFlow checkpoint of Google's or MLPerf's BERT, such as MLPerf's
model.ckpt-28252.

TensorFlow is imported only when such a checkpoint is read.
"""

import os
import re

import numpy as np
import torch

from bert.common.files import DataError

# Optimizer slots (m and v of LAMB or Adam) and the optimizer's counters.
_NOT_A_WEIGHT = re.compile(
    r"/(LAMB|LAMB_1|adam_m|adam_v|Adam|Adam_1)$|^(global_step|beta1_power|beta2_power)"
)

_RENAMED = (
    ("encoder/layer_", "encoder/layer."),
    ("predictions/output_bias", "predictions/bias"),
    ("output_weights", "weight"), ("output_bias", "bias"),
    ("gamma", "weight"), ("beta", "bias"), ("kernel", "weight"),
    ("_embeddings", "_embeddings/weight"),
)  # fmt: skip


def is_tensorflow_checkpoint(prefix: str) -> bool:
    return os.path.isfile(f"{prefix}.index")


def parameter_name(variable: str) -> str:
    """A TensorFlow variable's name -> the name of `BertForPreTraining`'s parameter."""
    for old, new in _RENAMED:
        variable = variable.replace(old, new)
    return variable.replace("/", ".")


def as_parameter(variable: str, array: np.ndarray) -> torch.Tensor:
    """A variable's float32 value -> the parameter's: only kernels are transposed."""
    return torch.from_numpy(array.T.copy() if variable.endswith("kernel") else array.copy())


def read_tensorflow_checkpoint(prefix: str) -> dict[str, torch.Tensor]:
    """Returns the weights of a TF1 checkpoint, with or without optimizer slots: {parameter's name
    in `BertForPreTraining`: float32 tensor}.

    prefix: the path without .index and .data-00000-of-00001. DataError if it cannot be read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(prefix)
        return {
            parameter_name(name): as_parameter(name, reader.get_tensor(name))
            for name in reader.get_variable_to_shape_map()
            if not _NOT_A_WEIGHT.search(name)
        }
    except (tf.errors.OpError, ValueError) as error:
        raise DataError(f"{prefix}: cannot be read as a TensorFlow checkpoint: {error}") from None
