"""What is measured after training, in which order, and what is written."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch.distributed.fsdp import FSDPModule

from upo.data.rewards import Reward
from upo.errors import UserError
from upo.evaluation.benchmarks import Harness
from upo.judges.base import Judge
from upo.rollout.vllm import Backend, check_vllm
from upo.runtime.collectives import ALONE, Ranks

if TYPE_CHECKING:
    from upo.data.example import Example
    from upo.data.module import PreferenceData
    from upo.methods.common.base import Method
    from upo.models.policy import Policy
    from upo.rollout.sampling import Completion

SAMPLING = ("max_new_tokens", "temperature", "top_p", "seed")
"""Settings that decide what is written."""


@dataclass
class Evaluation:
    """What is measured after training."""

    prompts: PositiveInt = 512
    """Number of held-out prompts that responses are generated for, all different; fewer if the data holds out fewer."""
    judge: Reward | Judge | None = None
    """Decides which of two responses is better: a reward (the higher value wins) or a chat model that reads both
    (`ChatJudge`). A tie counts as half a win. Null: no win rates."""
    reference: str | None = None
    """Model to compare with, for KL and win rates: a folder, run, or hub name; by default the method's reference. The
    implicit rewards of held-out pairs are always taken against the method's own reference, if it has one."""
    against: Path | None = None
    """Folder of another run that was evaluated on the same prompts: the judge also compares the policy's responses with
    that run's, which the results call `rival`."""
    objective: dict[str, float] | None = None
    """Weights w_i, by reward name, of the reported objective R = sum_i w_i r_i; by default the method's
    reward_weights."""
    rewards: dict[str, Reward] | None = None
    """Further rewards to report, by name, beside `data.rewards`."""
    unsafe_percent: list[float] = field(default_factory=lambda: [10.0, 20.0, 100.0])
    """Safety violations are counted on the most unsafe so many percent of the prompts (paper: 10, 20, 100), for every
    reward that knows categories (`SafetyClassifier`)."""
    unsafe_eps: list[NonNegativeFloat] = field(default_factory=lambda: [1e-3, 1e-1])
    """A generated response violates a category where its probability of that category is larger than the chosen
    response's by more than this (paper: 1e-3; significant violations: 1e-1)."""
    unsafe_rank: Literal["prompt", "chosen", "policy"] = "prompt"
    """Which text decides how unsafe a prompt is, by its largest category probability: the prompt, the chosen response,
    or the policy's response (the paper does not say)."""
    tasks: list[str] | None = None
    """Benchmarks of lm-evaluation-harness by name, e.g. [hellaswag]; it has to be installed."""
    harness: Harness = field(default_factory=Harness)
    """How they are run."""
    max_new_tokens: PositiveInt = 128
    """Largest number of tokens of a generated response, with the token that ends it."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 0 always takes the most probable token."""
    top_p: NonNegativeFloat = 0.95
    """Nucleus sampling: tokens are drawn from the most probable ones that together have this probability, in (0, 1]
    (paper: 0.95)."""
    batch_size: PositiveInt = 128
    """Number of responses sampled at a time; changes speed and memory only."""
    backend: Backend = "transformers"
    """What samples the responses. vllm has to be installed; it draws from the same distribution with other random
    numbers, and is untested on GPUs."""
    samples: NonNegativeInt = 3
    """Number of prompts that are printed at the end with all their responses."""
    seed: int = 0
    """Random seed of the sampling and of the choice of prompts."""

    def check(self) -> None:
        """Raises a `UserError` where a package is missing that these settings ask for, or a task cannot be made."""
        check_vllm(self.backend)
        if self.tasks:
            self.harness.check(self.tasks)

    def run(
        self,
        method: "Method",
        data: "PreferenceData",
        folder: Path,
        run: Path | None = None,
        ranks: Ranks = ALONE,
    ) -> dict[str, float]:
        """Measures, prints, and writes evaluation.json (all figures, also by prompt), samples.jsonl and the report.

        Args:
            method: with weights; the reference, where it generates, is evaluated beside the policy.
            folder: where the files go; an evaluation that was interrupted there goes on where it was.
            run: folder of the run, whose settings and curves the report shows; by default `folder`.
            ranks: the ranks that sample and score together, each with the whole models or its shards of them; the first
                one alone measures rewards, asks the judge, runs benchmarks and writes.

        Returns:
            All figures, flat name to number; none on further ranks.
        """
        from upo.data.codec import TextCodec
        from upo.evaluation import held_out_pairs, measure
        from upo.evaluation.benchmarks import benchmark
        from upo.evaluation.judging import by_judge
        from upo.evaluation.outcome import Outcome
        from upo.evaluation.safety_figures import category_values, violation_figures
        from upo.evaluation.systems import PARTIAL, comparison_model, opponent_texts, partial_file, systems_of
        from upo.evaluation.tables import print_evaluation
        from upo.evaluation.win_rates import by_reward, win_figures

        self.check()
        rewards = data.rewards | (self.rewards or {})
        weights = self._weights(method, rewards)
        examples = measure.held_out_examples(data)
        if not examples:
            raise UserError("no held-out prompt to evaluate on; raise data.validation")
        policy = method.policy
        own = method.reference and method.reference.load_model()  # what the method's rewards are measured against
        reference = own if self.reference is None else comparison_model(policy, self.reference)
        codec = TextCodec(policy.tokenizer)
        asked = measure.distinct_prompts(examples, self.prompts, self.seed, codec.encoder.format.writes)
        opponent = None if self.against is None else opponent_texts(self.against, asked, self._sampling())
        pairs = measure.held_out_pairs(examples, data, codec)
        of_pairs: dict[str, list[float]] = {}
        figures: dict[str, float] = {}
        with _evaluating(policy, reference, own):
            if pairs:
                logps = measure.log_probs(policy, own or reference, pairs, data, "held-out pairs", ranks=ranks)
                of_pairs = held_out_pairs.pair_values(logps, measure.rewards(method, logps, pairs, data, ranks))
                beta = getattr(method, "beta", None) if method.reference is not None else None
                figures |= held_out_pairs.idealised_figures(logps, pairs, beta)
        judging = {"judge": self.judge} if isinstance(self.judge, Reward) else {}
        drawn, by_token = self._written(policy, reference, asked, data, folder, ranks)
        if ranks.rank:
            return {}
        if self.tasks:
            with _evaluating(policy):
                figures |= benchmark(policy, self.tasks, self.harness, self.seed, folder)
        systems = systems_of(drawn, opponent, asked, codec.encoder)
        texts = {name: system.texts for name, system in systems.items()}
        measure.fit_rewards(rewards | judging, data)
        values = measure.measured(asked, systems, rewards | judging)
        for name, column in by_token.items():
            for own, x in zip(values["policy"], column, strict=True):
                own[name] = x
        measure.objective(values, weights)
        category_values(asked, texts, rewards, values)
        remarks: list[str] = []
        if isinstance(self.judge, Reward):
            by_reward(values)
        elif self.judge is not None:
            remarks = by_judge(self.judge, asked, texts, values, partial_file(folder))
        unsafe = {"percents": self.unsafe_percent, "eps": self.unsafe_eps, "rank": self.unsafe_rank}
        figures = (
            measure.text_figures(values, texts)
            | win_figures(values)
            | violation_figures(asked, rewards, values, **unsafe)
            | held_out_pairs.pair_figures(of_pairs, pairs, method.reward_is_log_odds)
            | figures
        )
        read = [policy.tokenizer.decode(s.prompt_ids, clean_up_tokenization_spaces=False) for s in drawn["policy"]]
        outcome = Outcome(figures, asked, read, texts, values, of_pairs, pairs, remarks)
        outcome.write(folder, self.settings(), run)
        for file in folder.glob(PARTIAL):
            file.unlink()
        print_evaluation(figures, asked, texts, self.samples)
        for remark in remarks:
            print(remark)
        return figures

    def settings(self) -> dict[str, Any]:
        """All fields in plain types; rewards and judge by what identifies their values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["judge"] = None if self.judge is None else self.judge.fingerprint()
        plain["rewards"] = {name: reward.fingerprint() for name, reward in (self.rewards or {}).items()}
        plain["harness"] = self.harness.settings()
        return plain | {"against": None if self.against is None else str(self.against)}

    def _sampling(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SAMPLING}

    def _weights(self, method: "Method", rewards: Mapping[str, Reward]) -> dict[str, float]:
        weights = self.objective or getattr(method, "reward_weights", None) or {}
        if missing := [name for name in weights if name not in rewards]:
            raise UserError(f"the objective weighs {missing}, which data.rewards lacks: {list(rewards)}")
        return weights

    def _written(
        self,
        policy: "Policy",
        reference: "Policy | None",
        asked: "Sequence[Example]",
        data: "PreferenceData",
        folder: Path,
        ranks: Ranks,
    ) -> "tuple[dict[str, list[Completion]], dict[str, list[float]]]":
        """What policy and reference write to the prompts, and figures of the policy's responses by its log-probs."""
        from upo.data.units import Unit
        from upo.evaluation.measure import log_probs, token_figures
        from upo.evaluation.systems import sampled

        sampling = self._sampling() | {"batch_size": self.batch_size, "backend": self.backend}
        models = {name: model for name, model in (("policy", policy), ("reference", reference)) if model is not None}
        with _evaluating(*(models.values() if self.backend == "transformers" else ())):
            drawn = {name: sampled(model, name, asked, folder, ranks, **sampling) for name, model in models.items()}
        units = [Unit.of(s.prompt_ids, (s.ids,), e) for s, e in zip(drawn["policy"], asked, strict=True)]
        with _evaluating(policy, reference):
            logps = log_probs(policy, reference, units, data, "KL and entropy", by_token=True, ranks=ranks)
        return drawn, token_figures(logps)


@contextmanager
def _evaluating(*policies: "Policy | None"):
    """Models in eval mode, on the accelerator where there is one; afterwards where and as they were."""
    from upo.evaluation.measure import accelerator

    with ExitStack() as stack:
        for policy in policies:
            if policy is not None:
                stack.callback(policy.train, policy.training)
                policy.eval()
                if not isinstance(policy.holder, FSDPModule):  # shards stay where they are
                    stack.callback(policy.to, next(policy.parameters()).device)
                    policy.to(accelerator())
        yield
