"""What the last bits of a run depend on besides its code: equal here and there, so are the bits."""

import hashlib
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "tokenizers", "lightning", "peft", "numpy")


def machine() -> dict[str, str]:
    """Processor, compiler, threads, versions, and a hash of results of PyTorch's own kernels; nothing of `upo`."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    compiler = shutil.which("g++") or shutil.which("clang++")
    words = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout if compiler else "none"
    return {
        "cpu": next((x.partition(": ")[2] for x in lines if x.startswith("model name")), platform.processor()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "compiler": words.partition("\n")[0],
        "threads": str(torch.get_num_threads()),
        "kernels": _kernels(),
        **{name: version(name) for name in PACKAGES},
    }


def _kernels() -> str:
    """Products, functions and sums as a small model takes them."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.rand(n, 16, generator=generator) - 0.5 for n in (200, 330))
    logits = (torch.nn.functional.silu(x) * x.pow(2).mean(-1, keepdim=True).rsqrt()) @ w.T
    attended = torch.nn.functional.scaled_dot_product_attention(*(x[:96].view(2, 2, 24, 16),) * 3, is_causal=True)
    results = (logits, logits.log_softmax(-1), attended, x.cos(), x.sigmoid().log(), (x.T @ x).sqrt())
    return hashlib.sha256(b"".join(y.contiguous().numpy().tobytes() for y in results)).hexdigest()[:16]
