"""Trains: `python -m upo.fit --config experiments/quickstart/quickstart.yaml [--model.beta 0.2]`."""

from upo.runtime.lightning_patches import frozen_imports, without_scipy_signal

with frozen_imports(), without_scipy_signal():
    from upo.cli.main import main

if __name__ == "__main__":
    main()
