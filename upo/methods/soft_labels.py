"""Soft labels: pairs with a probability p that the first response is preferred, and losses that fit p directly.

Soft cDPO is Mitchell's conservative DPO with eps = 1 - p for each pair; soft cIPO scales IPO's target. Furuta et al.,
2024, https://arxiv.org/abs/2409.06691, compare them with geometric averaging (`geometric.py`). Both losses lower a
margin that is too large for its p; geometric averaging never does.
Verified: soft cDPO. From knowledge: the form of soft cIPO. Deviations: none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve
from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from upo.data.batch import Batch
from upo.data.example import Example
from upo.data.units import Draft
from upo.data.views import PairedView
from upo.methods.common.base import LossTerm
from upo.methods.common.families import PairwiseMethod
from upo.methods.dpo import dpo_loss
from upo.models.logps import ResponseLogps


class SoftPairedView(PairedView):
    """Pairs with a soft label, the response that is more often preferred first; with p = 1/2 the order stays."""

    wants = "pair of responses with a soft label (`Example.soft_label`)"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        if example.soft_label is None or len(example.responses) != 2:
            return []
        if not 0 <= example.soft_label <= 1:
            raise ValueError(f"a soft label is a probability, not {example.soft_label}")
        if example.soft_label >= 0.5:
            return [Draft(example)]
        return [Draft(evolve(example, responses=example.responses[::-1], soft_label=1 - example.soft_label))]

    def columns(self, example: Example) -> Mapping[str, Sequence[float]]:
        """`soft_labels`: the probability that a response is preferred to the other one."""
        p = float(example.soft_label)  # type: ignore[arg-type]
        return {**super().columns(example), "soft_labels": (p, 1 - p)}


class SoftLabelMethod(PairwiseMethod):
    """Methods that learn from pairs with soft labels: subclasses define `soft_loss`."""

    view = SoftPairedView()

    def soft_loss(self, chosen: ResponseLogps, rejected: ResponseLogps, soft_labels: Tensor) -> Tensor:
        """One value per pair [B], unreduced."""
        raise NotImplementedError

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return {"preference": LossTerm(self.soft_loss(logps[0::2], logps[1::2], batch["soft_labels"][0::2]), "prompts")}


def soft_cdpo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    soft_labels: Float[Tensor, "pairs"],
    *,
    beta: float,
) -> Float[Tensor, "pairs"]:
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z), z = beta (r_w - r_l).

    One value per pair, unreduced; smallest where sigmoid(z) = p.
    """
    loss = dpo_loss(chosen_logratio, rejected_logratio, beta=beta)
    flipped_loss = dpo_loss(rejected_logratio, chosen_logratio, beta=beta)
    return soft_labels * loss + (1 - soft_labels) * flipped_loss


def soft_cipo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    soft_labels: Float[Tensor, "pairs"],
    *,
    tau: float,
) -> Float[Tensor, "pairs"]:
    """(r_w - r_l - (2p - 1) / (2 tau))^2; IPO's loss where p = 1.

    One value per pair, in squared nats, unreduced.
    """
    return (chosen_logratio - rejected_logratio - (2 * soft_labels - 1) / (2 * tau)) ** 2


class SoftCDPO(SoftLabelMethod):
    """DPO with the cross-entropy to soft labels."""

    reward_is_log_odds = True
    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats; larger stays closer to the reference (DPO's: 0.1).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def soft_loss(self, chosen: ResponseLogps, rejected: ResponseLogps, soft_labels: Tensor) -> Tensor:
        return soft_cdpo_loss(chosen.logratio, rejected.logratio, soft_labels, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class SoftCIPO(SoftLabelMethod):
    """IPO whose target margin is scaled by the soft label."""

    def __init__(self, *args: Any, tau: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            tau: strength of the KL constraint, in 1/nats; the target margin of a certain pair is 1 / (2 tau) nats
                (IPO's: 0.1; the GDPO paper's value is not known to us).
        """
        super().__init__(*args, **kwargs)
        self.tau = tau

    def soft_loss(self, chosen: ResponseLogps, rejected: ResponseLogps, soft_labels: Tensor) -> Tensor:
        return soft_cipo_loss(chosen.logratio, rejected.logratio, soft_labels, tau=self.tau)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.tau * logps.logratio
