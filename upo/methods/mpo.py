"""MPO, Mixed Preference Optimization (Wang et al., 2024), https://arxiv.org/abs/2411.10442: a weighted sum of losses.

    L = sum_i w_i L_i + w_g NLL_w        one forward pass of policy and reference for all of them

The paper mixes a preference loss (DPO, 0.8), a quality loss (BCO on the same pairs, 0.2) and a generation loss (the
chosen response's likelihood, 1). Here the losses are any pairwise methods, so one method and `nll_weight` also add a
likelihood term to a method that has none. Each loss is logged without its weight, as `loss/<name>`. Deviations: the
likelihood is a mean over a response's tokens, averaged over pairs; BCO is not available, because it keeps running
statistics: take another loss that judges each response by itself, e.g. NCA. From knowledge: the paper's weights.
"""

from functools import reduce
from operator import or_
from typing import Any, Protocol, runtime_checkable

from attrs import evolve
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor

from upo.data.batch import Batch
from upo.data.views import PairedView
from upo.errors import UserError
from upo.methods.common.base import LossTerm, Method
from upo.methods.common.families import PREFERENCE_METRICS, PairwiseMethod
from upo.methods.common.needs import Shared
from upo.models.logps import ResponseLogps
from upo.models.policy import Policy
from upo.models.reference import Reference


@runtime_checkable
class Loss(Protocol):
    """Makes a pairwise method; a config gives its other arguments, MPO gives the policy and the rest."""

    def __call__(
        self, policy: Policy, reference: Reference | None, optimizer: Any = ..., scheduler: Any = ...
    ) -> PairwiseMethod: ...


class MPO(PairwiseMethod):
    """A weighted sum of pairwise losses over one forward pass."""

    losses: dict[str, PairwiseMethod]

    def __init__(
        self,
        policy: Policy,
        reference: Reference | None = None,
        *args: Any,
        losses: dict[str, Loss],
        weights: dict[str, NonNegativeFloat] | None = None,
        nll_weight: NonNegativeFloat = 0.0,
        **kwargs: Any,
    ):
        """
        Args:
            policy: the model to train, shared by all losses.
            reference: where reference log-probs come from, shared by the losses that need one; null where none does.
            losses: pairwise methods under names that you choose, each a class with its arguments but without a policy,
                e.g. {preference: {class_path: DPO, init_args: {beta: 0.1}}, quality: {class_path: NCA}}. Reward
                metrics use the implicit reward of the first one.
            weights: w_i by name, 0 or more (from knowledge, paper: 0.8 preference, 0.2 quality; ours: 1 for a loss
                without an entry).
            nll_weight: w_g, weight of the chosen response's negative log-likelihood per token; 0 leaves it out (from
                knowledge, paper: 1; ours: 0).
        """
        if not losses:
            raise UserError("MPO sums up losses; name at least one in `model.losses`, e.g. {preference: DPO}")
        weights = dict(weights or {})
        if unknown := weights.keys() - losses.keys():
            raise UserError(f"weights: no loss is named {', '.join(sorted(unknown))}; `losses` has {', '.join(losses)}")
        methods = {name: _make(name, make, policy) for name, make in losses.items()}
        first, *others = (method.needs for method in methods.values())
        self.needs = evolve(reduce(or_, others, first), reward=first.reward)
        self.metric_names = (*PREFERENCE_METRICS, *(f"loss/{name}" for name in [*losses, "nll"]))
        super().__init__(policy, reference, *args, **kwargs)
        self.losses = methods  # a plain dict keeps them out of the module tree: they share the policy
        self.weights, self.nll_weight = weights, nll_weight

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        terms = {}
        for name, method in self.losses.items():
            for term_name, term in method.terms(batch, logps, statistics).items():
                key = name if term_name == "preference" else f"{name}/{term_name}"
                terms[key] = evolve(term, weight=self.weights.get(name, 1.0) * term.weight)
        return terms | {"nll": LossTerm(-logps[0::2].mean, "prompts", weight=self.nll_weight)}

    def reward(self, logps: ResponseLogps) -> Tensor:
        return next(iter(self.losses.values())).reward(logps)


def _make(name: str, make: Loss, policy: Policy) -> PairwiseMethod:
    """One of the losses.

    Raises:
        UserError: the method needs statistics of the whole step, auxiliary rewards, parameters of its own, or data
            other than pairs.
    """
    method = make(policy=policy, reference=Shared())
    kind = type(method)
    if (
        method.view != PairedView()
        or kind.statistics is not Method.statistics
        or kind.parameter_groups is not Method.parameter_groups
        or method.heads()
        or method.rewards
    ):
        raise UserError(
            f"losses.{name}: {kind.__name__} needs statistics of whole steps, auxiliary rewards, parameters of its own "
            "or data other than pairs; take a method that compares pairs one by one, e.g. DPO"
        )
    return method
