"""Evaluation of a trained policy on held-out prompts: `python -m upo.evaluate runs/quickstart`.

By log-probs on held-out pairs: reward accuracy (by source, for like lengths), margins, calibration, ranking accuracy
and what the reference allows of it. By generation, one response a prompt from policy and reference, beside the chosen
one of the data and, on request, another run's: preference (a judge decides between two texts), auxiliary rewards,
safety violations, KL, entropy, and the health of the text. Policy and reference sample with the same random numbers,
so that their difference is theirs. Every figure's interval is a 95 % one over prompts (upo.metrics.intervals): Wilson's
for win rates and accuracies, the bootstrap for all others. What was generated or judged when a command was killed is
kept.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from upo.errors import UserError, short_errors
from upo.evaluation.evaluation import Evaluation
from upo.runtime.atomic_files import read_json
from upo.runtime.lock import alone
from upo.runtime.run_folder import RunPaths, Which

__all__ = ["Evaluation", "evaluate", "main"]


def main(args: Sequence[str] | None = None) -> None:
    """Evaluates a run on its held-out prompts: evaluation.json, samples.jsonl, alpaca_eval.json, report.md and .html.

    Method, data and the evaluation's settings come from the run's config.yaml; options override the settings.
    """
    from upo.cli.command import ShortErrors

    parser = ShortErrors(prog="python -m upo.evaluate", description=main.__doc__)
    parser.add_argument(
        "run", type=str, help="run folder (its newest checkpoint is read), .ckpt file, or a model's folder"
    )
    parser.add_argument("--config", type=Path | None, help="YAML with model and data; by default the run's config.yaml")
    parser.add_argument("--out", type=Path | None, help="where the files go; by default the run folder")
    parser.add_argument(
        "--checkpoint",
        type=Which,
        default="last",
        help="which one of a run folder: the newest, or the best by its checkpoint.monitor, whose files go to RUN/best",
    )
    parser.add_argument(
        "--trust",
        type=bool,
        default=False,
        help="let the configuration name code outside of this package, PyTorch's optimizers and Lightning: of a run "
        "that somebody else has made, anything can be in it",
    )
    parser.add_class_arguments(Evaluation, None)
    given = parser.parse_args(args, defaults=False).as_dict()
    own = {name: given.pop(name) for name in ("run", "config", "out", "checkpoint", "trust") if name in given}
    with short_errors("what was generated and judged is kept; the same command goes on"):
        evaluate(**own, **given)


def evaluate(
    run: str,
    config: Path | None = None,
    out: Path | None = None,
    checkpoint: Which = "last",
    trust: bool = False,
    **settings: Any,
) -> dict[str, float]:
    """What `python -m upo.evaluate` does; `settings` override fields of the run's `evaluation:`."""
    from upo.callbacks.loggers import log_evaluation, same_run
    from upo.callbacks.run_folder import summarize
    from upo.evaluation.runs import load_run

    paths = RunPaths.of_checkpoint(Path(run)) if run.endswith(".ckpt") else RunPaths(run)
    target = out or (paths.of_best if checkpoint == "best" else paths).folder
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; name a folder with --out")
    here = out is None and checkpoint == "last"  # beside what the run itself has written
    with alone(RunPaths(target).lock, f"another command works in {target}") if target.is_dir() else nullcontext():
        method, data, evaluation = load_run(run, config, settings, checkpoint, trust)
        if here and not paths.config.is_file():
            raise UserError(f"{run} is no run folder; say with --out where the results go")
        figures = evaluation.run(method, data, target, paths.folder)
        if here:
            with same_run(paths.folder, trust) as loggers:
                log_evaluation(loggers, figures, paths.folder)
            if paths.finished:
                summarize(paths.folder, read_json(paths.summary) | figures)
    return figures


if __name__ == "__main__":
    main()
