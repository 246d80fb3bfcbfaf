"""Starting is cheap: what is not needed is not imported."""

import importlib
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

HEAVY = ("peft", "trl", "bitsandbytes", "datasets", "wandb", "accelerate", "sklearn", "textstat", "profanity_check")


@pytest.mark.turns(2)
def test_help_loads_nothing_heavy():
    """And begins with what is ours."""
    code = f"""
import contextlib, io, runpy, sys
sys.argv = ["upo.fit", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
    runpy.run_module("upo.fit", run_name="__main__")
text = out.getvalue()
assert text.startswith("usage: python -m upo.fit FILE")
titles = ("--config", "\\nmethod (", "\\ndata:", "\\ncheckpoints:", "\\nLightning's Trainer:")
places = [text.index(title) for title in titles]
assert places == sorted(places), "what is ours comes first"
print([name for name in {(*HEAVY, "scipy.signal")} if name in sys.modules])
import scipy.signal, torchmetrics.audio
scipy.signal.windows.hamming(3)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]" and done.returncode == 0, done.stdout + done.stderr


def test_a_module_that_is_there_stays():
    import scipy.signal

    import upo.fit

    importlib.reload(upo.fit)
    assert sys.modules["scipy.signal"] is scipy.signal and hasattr(scipy.signal, "windows")


@pytest.mark.alone
@pytest.mark.slow
def test_help_costs_a_second_more_than_lightning():
    """CPU seconds, the best of three each, in turn: what the machine does besides does not count."""
    bare = [sys.executable, "-c", "import lightning.pytorch.cli"]
    ours = [sys.executable, "-m", "upo.fit", "--help"]
    turns = [(cpu_seconds(bare), cpu_seconds(ours)) for _ in range(3)]
    assert min(o for _, o in turns) < min(b for b, _ in turns) + 1.0, turns


def cpu_seconds(command: list[str]) -> float:
    used: Callable[[], float] = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # noqa: E731
    before = used()
    subprocess.run(command, capture_output=True, check=True)
    return used() - before
