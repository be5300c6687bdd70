"""How this project compiles with numba, and where the compiled code is kept.

`kernel` and `inlined_kernel` decorate functions of arrays and numbers. Without numba's run time
(_nrt=False) nothing is allocated in a kernel and no references to arrays are counted, which would
happen at every call of every helper and take more than half of the time. Keep the helpers of a
kernel in its own file: numba's cache does not notice changes in others.
"""

import os
import sys
import tempfile
from typing import Any

import numba
import numba.extending
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.dispatcher import Dispatcher


def _choose_cache_folder():
    """numba fails if it can write neither beside the source nor to the user's cache."""
    here = os.path.dirname(os.path.abspath(__file__))
    beside = os.path.join(here, "__pycache__")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    candidates = (beside, here, home, os.path.dirname(home))
    if "NUMBA_CACHE_DIR" in os.environ or any(
        os.path.isdir(folder) and os.access(folder, os.W_OK) for folder in candidates
    ):
        return
    folder = os.path.join(tempfile.gettempdir(), f"bert-kernels-{os.getuid()}")
    print(
        (
            f"note: {here} and {home} cannot be written to; "
            f"compiled code goes to {folder} (or set NUMBA_CACHE_DIR)"
        ),
        file=sys.stderr,
    )
    numba.config.CACHE_DIR = folder


_choose_cache_folder()

_OPTIONS: Any = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
kernel = numba.njit(**_OPTIONS)
inlined_kernel = numba.njit(**_OPTIONS, inline="always")


@numba.extending.intrinsic
def prefetch(typing_context: Any, array: types.Type, index: types.Type) -> tuple:
    """In a kernel: fetches array[index] into the cache, without waiting. index: uint64."""

    def generate(context, builder, signature, arguments):
        array_type, values = (
            signature.args[0],
            context.make_array(signature.args[0])(context, builder, arguments[0]),
        )
        place = cgutils.get_item_pointer(
            context, builder, array_type, values, [arguments[1]], wraparound=False
        )
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        to_read, keep, data = number(0), number(3), number(1)
        builder.call(function, [builder.bitcast(place, byte), to_read, keep, data])
        return context.get_dummy_value()

    return types.void(array, index), generate


def at_every_offset(values: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
    """A view of an array as a wider type: element k begins at values[k], whatever its alignment.

    So a kernel reads or writes several elements at once. On a little-endian machine values[k] is in
    the lowest bits.
    """
    step, width = values.itemsize, np.dtype(dtype).itemsize
    return np.ndarray(max(0, (values.nbytes - width) // step + 1), dtype, values, strides=(step,))


def is_compiled(function: Dispatcher) -> bool:
    """Whether numba's cache holds compiled code of a kernel (of this or an earlier version)."""
    folder = function.stats.cache_path or ""
    prefix = f"{function.py_func.__module__.rpartition('.')[2]}.{function.py_func.__name__}-"
    return os.path.isdir(folder) and any(
        name.startswith(prefix) and name.endswith(".nbi") for name in os.listdir(folder)
    )


def announce_compilation(function: Dispatcher) -> None:
    """Says on stderr that kernels will be compiled, unless this one is."""
    if not is_compiled(function):
        print("compiling, once on this machine: about 10 seconds", file=sys.stderr)
