"""Prints every reward with its range and what it measures: `python -m upo.rewards`."""

import inspect
import textwrap

import upo.rewards
from upo.rewards import Reward


def main() -> None:
    rewards = [
        c for c in vars(upo.rewards).values() if inspect.isclass(c) and issubclass(c, Reward) and c is not Reward
    ]
    for reward in sorted(rewards, key=lambda c: c.__name__):
        low, high = reward.range
        print(f"{reward.__name__}{inspect.signature(reward)}  range [{low:g}, {high:g}]")
        print(textwrap.indent(inspect.getdoc(reward), "    "), end="\n\n")


if __name__ == "__main__":
    main()
