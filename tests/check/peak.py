"""In a process of its own: trains two configs, a small one to warm up, and prints the peak memory of the second.

The peak is that of the resident set above what was there before the second model was built.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path

import torch


def status(field: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    from upo.cli.main import CLI

    torch.set_num_threads(1)
    warm, config = sys.argv[1:]
    CLI(["--config", warm]).fit()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    cli = CLI(["--config", config])
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    print(f"peak {status('VmHWM') - base}")
    os._exit(0)


if __name__ == "__main__":
    main()
