"""SRPO, Self-Improving Robust Preference Optimization (Choi et al., ICLR 2025), https://arxiv.org/abs/2406.01660.

Differs from DPO and IPO: besides answering, the policy learns to improve an answer that it is shown. A generator
pi(y|x) and an improver q(y'|x, y), one model under two prompts, play a min-max game whose solution satisfies identities
between R(y) = log pi(y|x) / ref(y|x) and Q(y'|y) = log q(y'|x, y) / ref(y'|x, y). With hard labels they give

    L_q  = [1/2 - beta (Q(w|l) - Q(l|l))]^2 + [1/2 - beta (Q(w|w) - Q(l|w))]^2
    L_pi = [1/2 - beta (R_w - R_l) - beta/2 (Q(w|l) - Q(w|w) + Q(l|l) - Q(l|w))]^2
    L    = alpha L_pi + (1 - alpha) L_q

Each pair is scored under three prompts, x, (x, w) and (x, l): six log-probs per model. If the improver ignores what it
is shown, L_pi is IPO's loss. Partly verified: the objective, and that two losses are combined. Derived by us: the
identities and L_pi. Ours: that alpha is the weight of L_pi, the defaults, and that gradients of Q flow in L_pi.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat
from torch import Tensor

from upo.data.batch import Batch
from upo.data.example import Example, Prompt
from upo.data.units import Draft, DraftGroup
from upo.data.views import PairedView, pairs_of
from upo.methods.common.base import LossTerm, Stage
from upo.methods.common.families import PREFERENCE_METRICS, PairwiseMethod
from upo.models.logps import ResponseLogps

IMPROVE = "Write a better answer to my last message."
"""The improver's instruction, after the answer that it is shown."""

Pairs = Float[Tensor, "pairs"]


def improver_loss(w_w: Pairs, l_w: Pairs, w_l: Pairs, l_l: Pairs, *, beta: float) -> Pairs:
    """L_q, one value per pair, unreduced; 1/2 where policy and reference agree.

    Args:
        w_w: Q(w|w), in nats; likewise `l_w` is Q(l|w), the log-ratio of the rejected response after the chosen one.
    """
    return (0.5 - beta * (w_l - l_l)) ** 2 + (0.5 - beta * (w_w - l_w)) ** 2


def generator_loss(r_w: Pairs, r_l: Pairs, w_w: Pairs, l_w: Pairs, w_l: Pairs, l_l: Pairs, *, beta: float) -> Pairs:
    """L_pi, one value per pair, unreduced; 1/4 where policy and reference agree."""
    return (0.5 - beta * (r_w - r_l) - beta / 2 * (w_l - w_w + l_l - l_w)) ** 2


def improver_prompt(prompt: Prompt, shown: str) -> Prompt:
    """The improver's prompt: the prompt, the answer `shown`, and the instruction to write a better one."""
    if isinstance(prompt, str):
        return f"{prompt}{shown}\n\n{IMPROVE}\n\n"
    return (*prompt, {"role": "assistant", "content": shown}, {"role": "user", "content": IMPROVE})


class SRPOView(PairedView):
    """Pairs under three prompts each: rows 6i to 6i + 5 are w|x, l|x, w|x,w, l|x,w, w|x,l, l|x,l."""

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        return [Draft(pair, improvers(pair)) for pair in pairs_of(example, max_pairs)]


def improvers(pair: Example) -> tuple[DraftGroup, ...]:
    """Both responses under two improver prompts: one that shows the chosen and one that shows the rejected response."""
    return tuple(DraftGroup("improver", improver_prompt(pair.prompt, r.shown)) for r in pair.responses)


class SRPO(PairwiseMethod):
    """Self-Improving Robust Preference Optimization."""

    view = SRPOView()
    metric_names = (*PREFERENCE_METRICS, "loss/generator", "loss/improver")

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, alpha: ClosedUnitInterval = 0.5, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraints, in 1/nats; at the optimum log-ratios of a pair differ by up to
                1 / (2 beta) nats (ours: 0.1).
            alpha: weight of the generator's loss, in [0, 1]; the improver's is 1 - alpha (ours: 0.5).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.alpha = beta, alpha

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        r_w, r_l, w_w, l_w, w_l, l_l = logps.logratio.view(-1, 6).unbind(1)
        generator = generator_loss(r_w, r_l, w_w, l_w, w_l, l_l, beta=self.beta)
        improver = improver_loss(w_w, l_w, w_l, l_l, beta=self.beta)
        return {
            "generator": LossTerm(generator, "prompts", weight=self.alpha),
            "improver": LossTerm(improver, "prompts", weight=1 - self.alpha),
        }

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        """Rewards and margins are computed from the generator's responses only, rows 6i and 6i + 1."""
        super().update_metrics(stage, batch, logps[batch.own_rows])

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
