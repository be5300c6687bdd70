"""Import this before the frameworks: it keeps their banners off the user's console, and a process
of theirs away.

Transformers would load TensorFlow (9 seconds, and its banner); ColossalAI warns of CUDA extras that
BERT does not use. TensorFlow reports every optimisation it has; here it only reads and writes
files. ColossalAI imports torch's compiler, which would start a process for it at once: 480 MB and 3
CPU seconds a rank, for --compile only (bert/training/model.py).
"""

import logging
import os
import warnings

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("USE_TF", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
warnings.filterwarnings("ignore", category=UserWarning, module=r"colossalai\.")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# torch.compile's advice; but --precision=fp32 is chosen for exactness, and the others have next to
# no products in float32.
warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
# Python 3.12 tells users of them, once, when it compiles ColossalAI.
warnings.filterwarnings("ignore", "invalid escape sequence", SyntaxWarning)
