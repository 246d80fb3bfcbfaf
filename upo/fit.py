"""Trains: `python -m upo.fit --config experiments/quickstart.yaml [--model.beta 0.2]`."""

import gc
import sys
from types import ModuleType

gc.disable()  # the 4,000 modules below leave next to no garbage, yet looking for it takes a sixth of the start
sys.modules["scipy.signal"] = stand_in = ModuleType("scipy.signal")  # another sixth: torchmetrics loads it for
stand_in.hamming = None  # pyright: ignore[reportAttributeAccessIssue]  # this name alone, absent from it since 1.13
from upo.cli import main  # noqa: E402

del sys.modules["scipy.signal"]
gc.enable()
gc.freeze()

if __name__ == "__main__":
    main()
