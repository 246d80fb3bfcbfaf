"""Preference data that a model writes itself: prompts -> sampled responses -> scores -> pairs.

python -m upo.generate --model ../shared/models/stories260k --self_prompts 2000 --judge Sentiment --out pairs.jsonl
"""

from collections.abc import Sequence

import upo.rewards  # noqa: F401  makes short class names known
from upo.cli.command import command
from upo.rollout.preference_set import generate


def main(args: Sequence[str] | None = None) -> None:
    """Runs `generate` with the arguments of a command line."""
    command(generate, "generate", args, positional=False)


if __name__ == "__main__":
    main()
