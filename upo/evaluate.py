"""Evaluation of a trained policy on held-out prompts: `python -m upo.evaluate runs/quickstart`.

By log-probs on held-out pairs: reward accuracy and ranking accuracy. By generation, one response a prompt from policy
and reference, beside the chosen one of the data: preference (a judge decides between two texts), auxiliary rewards,
KL, and the health of the text. Policy and reference sample with the same random numbers, so that their difference
is theirs. Every figure's interval is a 95 % one over prompts (upo.metrics.intervals): Wilson's for win rates and
accuracies, the bootstrap for all others.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from upo.errors import UserError
from upo.rewards.base import Reward

if TYPE_CHECKING:
    from upo.data.example import Example
    from upo.data.module import PreferenceData
    from upo.methods.base import Method
    from upo.policy import Policy


@dataclass
class Evaluation:
    """What is measured after training."""

    prompts: PositiveInt = 512
    """Held-out prompts to generate for, all different; fewer where the data holds out fewer."""
    judge: Reward | None = None
    """Which of two responses is preferred: the one of higher value, ties count half. Null: no win rates."""
    objective: dict[str, float] | None = None
    """Weights of `data.rewards` in the reported objective R = sum_i w_i r_i; by default the method's reward_weights."""
    max_new_tokens: PositiveInt = 128
    """Limit of a response, EOS included."""
    temperature: NonNegativeFloat = 1.0
    """Of the sampling; 0 takes the likeliest token."""
    top_p: NonNegativeFloat = 0.95
    """Nucleus of the sampling, in (0, 1] (paper: 0.95)."""
    batch_size: PositiveInt = 128
    """Responses sampled at a time; changes speed and memory only."""
    samples: NonNegativeInt = 3
    """How many prompts are shown with all responses."""
    seed: int = 0
    """Of the sampling, and of which prompts are taken."""

    def run(
        self, method: "Method", data: "PreferenceData", folder: Path, reference: "Policy | None" = None
    ) -> dict[str, float]:
        """Measures, prints, and writes evaluation.json (all figures, also by prompt) and samples.jsonl.

        Args:
            method: with weights; its reference, where it generates, is evaluated beside the policy.
            folder: where the files go.
            reference: stands in for a method that has none.

        Returns:
            All figures, flat name to number.
        """
        from upo import measure
        from upo.data.tokenize import Encoder
        from upo.tables import print_evaluation

        policy = method.policy
        reference = reference or getattr(method.reference, "model", None)
        examples = measure.held_out_examples(data)
        if not examples:
            raise UserError("no held-out prompt to evaluate on; raise data.validation")
        weights = self._weights(method, data)
        encoder = Encoder(policy.tokenizer)
        with _evaluating(policy, reference):
            pairs = measure.pairs_of(examples, data, encoder)
            wins = (
                measure.pair_wins(method, measure.log_probs(policy, reference, pairs, data, "held-out pairs"))
                if pairs
                else {}
            )
            asked = measure.distinct_prompts(examples, self.prompts, self.seed)
            texts, values = self._generations(policy, reference, asked, data, encoder)
        measure.derive(values, weights)
        figures = measure.text_figures(values, texts) | measure.accuracies(wins, pairs)
        self._write(folder, figures, asked, texts, values, wins, pairs)
        print_evaluation(figures, asked, texts, self.samples)
        return figures

    def _weights(self, method: "Method", data: "PreferenceData") -> dict[str, float]:
        weights = self.objective or getattr(method, "reward_weights", None) or {}
        if missing := [name for name in weights if name not in data.rewards]:
            raise UserError(f"the objective weighs {missing}, which data.rewards lacks: {list(data.rewards)}")
        return weights

    def _generations(
        self,
        policy: "Policy",
        reference: "Policy | None",
        asked: "Sequence[Example]",
        data: "PreferenceData",
        encoder: Any,
    ) -> tuple[dict[str, list[str]], dict[str, list[dict[str, float]]]]:
        """Texts and what is measured on them, by writer (policy, reference, chosen) and prompt."""
        from upo.data.layout import Tokens
        from upo.measure import Texts, chosen_texts, fit_rewards, log_probs, measured
        from upo.sampling import sample

        writers, drawn = {}, {}
        for name, model in {"policy": policy, "reference": reference}.items():
            if model is None:
                continue
            written = sample(
                model.model,
                model.tokenizer,
                [example.prompt for example in asked],
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                batch_size=self.batch_size,
                seed=self.seed,
                progress=f"{name}'s responses",
            )
            drawn[name] = [group[0] for group in written]
            writers[name] = Texts(
                [s.text for s in drawn[name]],
                [len(s.ids) for s in drawn[name]],
                [s.ended for s in drawn[name]],
            )
        if (chosen := chosen_texts(asked, encoder)) is not None:
            writers["chosen"] = chosen
        rewards = data.rewards | ({"judge": self.judge} if self.judge is not None else {})
        fit_rewards(rewards, data)
        values = measured(asked, writers, rewards)
        if reference is not None:
            units = [Tokens(s.prompt_ids, (s.ids,), e) for s, e in zip(drawn["policy"], asked, strict=True)]
            logratio = log_probs(policy, reference, units, data, "KL").logratio.tolist()
            for own, x in zip(values["policy"], logratio, strict=True):
                own["kl"] = x
        return {name: w.texts for name, w in writers.items()}, values

    def _write(
        self,
        folder: Path,
        figures: dict[str, float],
        asked: "Sequence[Example]",
        texts: dict[str, list[str]],
        values: dict[str, list[dict[str, float]]],
        wins: dict[str, list[float]],
        pairs: Sequence[Any],
    ) -> None:
        from upo.callbacks.run_folder import write_json
        from upo.data.example import prompt_key

        folder.mkdir(parents=True, exist_ok=True)
        keys = [prompt_key(example.prompt) for example in asked]
        content = {
            "settings": asdict(self) | {"judge": None if self.judge is None else self.judge.fingerprint()},
            "metrics": figures,
            "prompts": [{"prompt": k, **{name: v[i] for name, v in values.items()}} for i, k in enumerate(keys)],
            "pairs": [
                {"prompt": prompt_key(unit.example.prompt), **{name: x[i] for name, x in wins.items()}}
                for i, unit in enumerate(pairs)
            ],
        }
        write_json(folder / "evaluation.json", content)
        lines = [{"prompt": k, **{name: t[i] for name, t in texts.items()}} for i, k in enumerate(keys)]
        (folder / "samples.jsonl").write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))


@contextmanager
def _evaluating(*policies: "Policy | None"):
    """Models in eval mode, on the accelerator where there is one; afterwards where and as they were."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with ExitStack() as stack:
        for policy in policies:
            if policy is not None:
                stack.callback(policy.to, next(policy.parameters()).device)
                stack.callback(policy.train, policy.training)
                policy.to(device).eval()
        yield


def main(args: Sequence[str] | None = None) -> None:
    """Evaluates a run on its held-out prompts and writes evaluation.json and samples.jsonl.

    Method, data and the evaluation's settings come from the run's config.yaml; options override the settings.
    """
    from upo.command import ShortErrors

    parser = ShortErrors(prog="python -m upo.evaluate", description=main.__doc__)
    parser.add_argument("run", type=str, help="run folder (its newest checkpoint), .ckpt file, or a model's folder")
    parser.add_argument("--config", type=Path | None, help="YAML with model and data; by default the run's config.yaml")
    parser.add_argument("--reference", type=str | None, help="model to compare with where the method has no reference")
    parser.add_argument("--out", type=Path | None, help="where the files go; by default the run folder")
    parser.add_class_arguments(Evaluation, None)
    given = parser.parse_args(args, defaults=False).as_dict()
    own = {name: given.pop(name, None) for name in ("run", "config", "reference", "out")}
    try:
        evaluate(**own, **given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def evaluate(
    run: str,
    config: Path | None = None,
    reference: str | None = None,
    out: Path | None = None,
    **settings: Any,
) -> dict[str, float]:
    """What `python -m upo.evaluate` does; `settings` override fields of the run's `evaluation:`."""
    from upo.callbacks.run_folder import summarize
    from upo.checkpoint import load_model, load_run

    method, data, evaluation = load_run(run, config, settings)
    folder = Path(run).parent.parent if run.endswith(".ckpt") else Path(run)
    if out is None and not (folder / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder; say with --out where the results go")
    twin = None
    if reference is not None:
        twin = method.policy.frozen_copy()
        model, twin.tokenizer = load_model(reference)
        known, others = (p.tokenizer.get_vocab().items() for p in (method.policy, twin))
        if not (known <= others or others <= known):
            raise UserError(f"{reference} has another vocabulary than the policy; name a reference that shares it")
        twin.adopt(model)
    figures = evaluation.run(method, data, out or folder, twin)
    if out is None and (summary := folder / "summary.json").is_file():
        summarize(folder, json.loads(summary.read_text()) | figures)
    return figures


if __name__ == "__main__":
    main()
