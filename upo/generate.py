"""Preference data that a model writes itself: prompts -> sampled responses -> scores -> pairs.

python -m upo.generate --model ../shared/models/stories260k --self_prompts 2000 --judge Sentiment --out pairs.jsonl
"""

import upo.rewards  # noqa: F401  makes short class names known
from upo.cli.command import command
from upo.rollout.preference_set import generate

if __name__ == "__main__":
    command(generate, "generate", positional=False)
