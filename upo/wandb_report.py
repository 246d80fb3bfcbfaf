"""An evaluation in the W&B run that trained the policy, offline where there is no account."""

import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from upo.data.example import Example

ROWS = 100
"""Prompts in the table of samples."""


def log_evaluation(
    logger: "Logger",
    folder: Path,
    figures: Mapping[str, float],
    asked: "Sequence[Example]",
    texts: Mapping[str, Sequence[str]],
) -> None:
    """Figures into the run's summary, samples as a table, report and picture as media; nothing for other loggers."""
    from lightning.pytorch.loggers import WandbLogger

    if not isinstance(logger, WandbLogger):
        return
    import wandb

    from upo.data.example import as_text

    rows = [[as_text(example.prompt), *(texts[w][i] for w in texts)] for i, example in enumerate(asked[:ROWS])]
    run: Any = logger.experiment
    run.summary.update(dict(figures))
    run.log(
        {
            "evaluation/samples": wandb.Table(columns=["prompt", *texts], data=rows),
            "evaluation/report": wandb.Html((folder / "report.html").read_text(), inject=False),
            "evaluation/picture": wandb.Image(str(folder / "evaluation.png")),
        }
    )


@contextmanager
def same_run(folder: Path | None) -> "Iterator[list[Logger]]":
    """The W&B logger that the run in `folder` had, continuing its W&B run; empty where it had none."""
    if folder is None or not (folder / "wandb_id.txt").is_file():
        yield []
        return
    import yaml

    loggers = ((yaml.safe_load((folder / "config.yaml").read_text()) or {}).get("trainer") or {}).get("logger")
    loggers = loggers if isinstance(loggers, list) else [loggers]
    own = next((x for x in loggers if isinstance(x, dict) and "WandbLogger" in x["class_path"]), None)
    if own is None:
        yield []
        return
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    options = (own.get("init_args") or {}) | (own.get("dict_kwargs") or {})
    offline = bool(options.get("offline")) or not has_account()
    options |= {"id": (folder / "wandb_id.txt").read_text(), "version": None, "resume": "allow", "log_model": False}
    logger = WandbLogger(**options | {"offline": offline})
    try:
        yield [logger]
    finally:
        if wandb.run is not None:
            wandb.finish()


def has_account() -> bool:
    """Whether W&B knows where to send a run: a key, a mode that says so, or what `wandb login` has left."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
