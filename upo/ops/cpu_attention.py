"""The packed layout's attention on CPUs, in C++ (`cpu_attention.cpp`): several times faster than PyTorch's.

It is compiled at first use, once per machine; without a compiler or AVX2, PyTorch's own attention is used.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

SOURCE = Path(__file__).with_suffix(".cpp")
FOLDER = Path("~/.cache/upo/ops")
"""Folder of compiled libraries, whose names contain the hash of source and flags."""
FLAGS = ("-O3", "-mavx2", "-mfma", "-fopenmp", "-shared", "-fPIC")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None if they cannot be compiled or loaded here."""
    if platform.system() != "Linux" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    path = FOLDER.expanduser() / f"attention-{key}.so"
    try:
        return ctypes.CDLL(str(path if path.exists() else _compiled(path)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(
            f"attention on this CPU runs in PyTorch, several times slower: {reason}; install a C++ compiler (`g++`, or "
            f"set CXX) and make {FOLDER} writable"
        )
        return None


def _compiled(path: Path) -> Path:
    """Compiles into a temporary file and moves it to `path`: other ranks and runs may do the same at the same time."""
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "")
    if not compiler:
        raise FileNotFoundError("no C++ compiler found")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        output = Path(folder) / path.name
        subprocess.run([*compiler, *FLAGS, str(SOURCE), "-o", str(output)], check=True, capture_output=True, text=True)
        output.replace(path)
    return path


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels support these tensors: float32 on a CPU, equal head sizes that are a multiple of 8."""
    size = query.shape[-1]
    is_float32 = {x.dtype for x in (query, key, value)} == {torch.float32}
    sizes_fit = size % 8 == 0 and size == value.shape[-1]
    return query.device.type == "cpu" and is_float32 and sizes_fit and library() is not None


def attend(
    query: Tensor, key: Tensor, value: Tensor, pieces: Tensor, units: Tensor, longest: int, scale: float | None = None
) -> Tensor:
    """Prefix-sharing attention.

    Args:
        query: [R, heads, T, D]; key and value: [R, key heads, T, D].
        pieces: prompts and responses, int64 [n, 3]: a piece's first flat position in [R T], its number of tokens, and
            the number of tokens of its prompt, 0 if it is a prompt itself.
        units: int64 [prompts + 1]: pieces `units[i]` to `units[i + 1]` (exclusive) are prompt i and its responses.
        longest: the largest number of tokens of a piece and its prompt.
        scale: of the scores; by default 1 / sqrt(D).

    Returns:
        [R, heads, T, D], zero at padding. The same for any number of threads.
    """
    return _Attention.apply(query, key, value, pieces, units, longest, scale or query.shape[-1] ** -0.5)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, pieces, units, longest, scale = inputs
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in tensors)
        rows, heads, width, size = query.shape
        out, lse = _empty(query), query.new_zeros(heads, rows * width)
        counts = [ctypes.c_int64(n) for n in (len(units) - 1, width, rows)]
        ctx.sizes = [*counts, heads, key.shape[1], size, longest, torch.get_num_threads(), ctypes.c_float(scale)]
        _call("upo_attention", [query, key, value, out], [lse, pieces, units], ctx.sizes)
        ctx.save_for_backward(query, key, value, out, lse, pieces, units)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, pieces, units = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        results = [_empty(x) for x in (query, key, value)]
        tensors = [query, key, value, out, grad, *results]
        _call("upo_attention_backward", tensors, [lse, pieces, units], ctx.sizes)
        return (*results, None, None, None, None)


def _empty(x: Tensor) -> Tensor:
    """Zeros of the shape of x, [R, heads, T, D], in the memory order [R, T, heads, D] that the next layer reads."""
    return torch.zeros_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _call(name: str, tensors: list[Tensor], plain: list[Tensor], rest: list[Any]) -> None:
    """Calls a kernel.

    Args:
        tensors: passed as arrays of pointers and strides.
        plain: contiguous tensors, passed as pointers.
        rest: numbers, passed as they are.
    """
    if isinstance(tensors[0], FakeTensor):  # while shapes are traced there is nothing to compute
        return
    data = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
    strides = (ctypes.c_int64 * (3 * len(tensors)))(*(n for x in tensors for n in x.stride()[:3]))
    getattr(library(), name)(data, strides, *(ctypes.c_void_p(x.data_ptr()) for x in plain), *rest)
