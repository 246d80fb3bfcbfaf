"""Trains: `python -m upo.fit --config experiments/quickstart/quickstart.yaml [--model.beta 0.2]`."""

import gc
import sys
from types import ModuleType

gc.disable()  # the 4,000 modules below leave next to no garbage, yet looking for it takes a sixth of the start
stand_in = ModuleType("scipy.signal")  # another sixth: torchmetrics loads it to add this name, which it lost in 1.13
stand_in.hamming = None  # pyright: ignore[reportAttributeAccessIssue]
spared = sys.modules.setdefault("scipy.signal", stand_in) is stand_in
from upo.cli.main import main  # noqa: E402

if spared:
    del sys.modules["scipy.signal"]
gc.enable()
gc.freeze()

if __name__ == "__main__":
    main()
