"""Trains: `python -m upo.fit --config experiments/quickstart.yaml [--model.beta 0.2]`."""

from upo.cli import main

if __name__ == "__main__":
    main()
