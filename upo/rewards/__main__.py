"""`python -m upo.rewards`: all auxiliary rewards; with a config, what its rewards say about its data."""

import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

import upo.rewards
from upo.cli.command import ShortErrors
from upo.errors import UserError, short_errors
from upo.rewards import Reward, VectorReward
from upo.runtime.moved import no_such_file

DIRECTIONS = {True: "higher is better", False: "lower is better", None: "no direction"}


def main(args: Sequence[str] | None = None) -> None:
    """Lists the auxiliary rewards; with --config shows, before any training, what its rewards say about its data.

    That is, on the training split: each reward's distribution for chosen and for rejected responses, correlations
    between rewards and with the label, and the share of pairs whose rejected response has the higher reward. Written as
    tables, rewards.json and rewards.png.
    """
    parser = ShortErrors(prog="python -m upo.rewards", description=main.__doc__)
    parser.add_argument("--config", type=Path | None, help="YAML of an experiment; without it the rewards are listed")
    parser.add_argument("--out", type=Path | None, help="where the files go; by default <its run folder>_rewards")
    parser.add_argument("--limit", type=PositiveInt | None, help="measure only this number of random examples")
    given = parser.parse_args(args)
    if given.config is None:
        listing()
        return
    with short_errors():
        show(given.config, given.out, given.limit)


def listing() -> None:
    """Every reward with its range and what it measures."""
    rewards = [
        c
        for c in vars(upo.rewards).values()
        if inspect.isclass(c) and issubclass(c, Reward) and c not in (Reward, VectorReward)
    ]
    for reward in sorted(rewards, key=lambda c: c.__name__):
        low, high = reward.range
        head = f"{reward.__name__}{inspect.signature(reward)}"
        print(f"{head}  range [{low:g}, {high:g}], {DIRECTIONS[reward.higher_is_better]}")
        print(textwrap.indent(inspect.getdoc(reward) or "", "    "), end="\n\n")


def show(config: Path, out: Path | None = None, limit: int | None = None) -> dict[str, Any]:
    """What `python -m upo.rewards --config` does; returns the content of rewards.json."""
    if not config.is_file():
        raise UserError(f"--config: no such file {no_such_file(config)}")
    from upo.cli.stages import run_folder
    from upo.evaluation.runs import from_config
    from upo.rewards.survey import survey
    from upo.rewards.survey_view import draw_survey, print_survey
    from upo.runtime.atomic_files import write_json

    method, data, evaluation = from_config(config, {}, trust=True)
    rewards = data.rewards | ({} if evaluation.judge is None else {"judge": evaluation.judge})
    weights = getattr(method, "reward_weights", None) or evaluation.objective or {}
    content, columns = survey(data, rewards, weights, limit)
    print_survey(content)
    folder = out
    if folder is None:
        own = run_folder(config)
        folder = own.with_name(f"{own.name}_rewards")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "rewards.json", {"config": str(config)} | content)
    draw_survey(content, columns, folder / "rewards.png")
    print(f"{folder / 'rewards.png'}, {folder / 'rewards.json'}")
    return content


if __name__ == "__main__":
    main()
