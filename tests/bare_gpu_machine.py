"""To import this takes away the packages that setup.sh installs and a bare GPU machine lacks:
tests/script_server.py does so.
"""

import sys

ABSENT = (
    "colossalai", "nvidia.dali", "numba", "tensorflow", "tensorboard", "matplotlib", "ray", "nltk",
    "google_crc32c", "mlperf_logging", "hypothesis", "psutil", "triton",
)  # fmt: skip
sys.modules.update(dict.fromkeys(ABSENT))

import torch  # noqa: E402, F401
import transformers.models.bert.modeling_bert  # noqa: E402, F401
