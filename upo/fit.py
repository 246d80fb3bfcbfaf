"""Trains: `python -m upo.fit --config experiments/quickstart.yaml [--model.beta 0.2]`."""

import gc

gc.disable()  # the 4,000 modules below leave next to no garbage, yet looking for it takes a sixth of the start
from upo.cli import main  # noqa: E402

gc.enable()
gc.freeze()

if __name__ == "__main__":
    main()
