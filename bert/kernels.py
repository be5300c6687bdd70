"""How this project compiles with numba, and where the compiled code is kept.

`kernel` and `inlined_kernel` decorate functions of arrays and numbers. Without numba's run time (_nrt=False) nothing is
allocated in a kernel and no references to arrays are counted, which would happen at every call of every helper and take more
than half of the time. Keep the helpers of a kernel in its own file: numba's cache does not notice changes in others.
"""

import os
import sys
import tempfile


def _choose_cache_folder():
    """numba keeps compiled code beside the source or in the user's cache, and fails if it can write to neither."""
    here = os.path.dirname(os.path.abspath(__file__))
    beside = os.path.join(here, "__pycache__")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    candidates = (beside, here, home, os.path.dirname(home))
    if "NUMBA_CACHE_DIR" in os.environ or any(os.path.isdir(folder) and os.access(folder, os.W_OK) for folder in candidates):
        return
    folder = os.path.join(tempfile.gettempdir(), f"bert-kernels-{os.getuid()}")
    print(
        f"note: {here} and {home} cannot be written to; compiled code goes to {folder} (or set NUMBA_CACHE_DIR)",
        file=sys.stderr,
    )
    os.environ["NUMBA_CACHE_DIR"] = folder


_choose_cache_folder()

import numba  # noqa: E402  reads NUMBA_CACHE_DIR when it is imported

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
kernel = numba.njit(**_OPTIONS)
inlined_kernel = numba.njit(**_OPTIONS, inline="always")


def is_compiled(function):
    """Whether numba's cache holds compiled code of a kernel (of this or an earlier version)."""
    folder = function.stats.cache_path
    prefix = f"{function.py_func.__module__.rpartition('.')[2]}.{function.py_func.__name__}-"
    return os.path.isdir(folder) and any(name.startswith(prefix) and name.endswith(".nbi") for name in os.listdir(folder))
