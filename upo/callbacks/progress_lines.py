"""Progress of a run whose output goes to a file, where a bar would show nothing until its epoch ends."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback


class ProgressLines(Callback):
    """Prints a line a minute: step, what the bar would show, and the time that is left. Nothing on a terminal."""

    def __init__(self, every: float = 60.0):
        """
        Args:
            every: seconds between two lines.
        """
        self.every = every

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.begun = self.printed = time.monotonic()
        self.first = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        now = time.monotonic()
        quiet = sys.stdout.isatty() or not trainer.is_global_zero or trainer.progress_bar_callback is None
        if quiet or now - self.printed < self.every:
            return
        self.printed = now
        step, end = trainer.global_step, trainer.estimated_stepping_batches
        shown = ", ".join(f"{name} {float(x):.4g}" for name, x in trainer.progress_bar_metrics.items())
        left = (now - self.begun) / max(1, step - self.first) * (end - step)
        known = f"/{end:.0f}, {left / 60:.0f} min left" if end != float("inf") else ""
        print(f"step {step}{known}: {shown}", flush=True)
