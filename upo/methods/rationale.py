"""RDPO and RORPO, preferences with rationales (Just et al., 2024), https://arxiv.org/abs/2407.14477.

The model also learns to explain why the chosen response is better. p(w > l, r | x) = p(w > l | x) p(r | x, w > l): the
log-likelihood of the rationale r, under a prompt of its own that shows both responses, is added to DPO (RDPO) or ORPO
(RORPO). The official code applies -log sigmoid to that term, which has 1/2 to 1 times the paper's gradient
(`log_sigmoid`). Verified: the official code's form; the paper's form in a published summary. Deviation: the wording of
the rationale's prompt.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.data.batch import Batch
from upo.data.example import Example, Prompt, Response
from upo.data.units import Draft, DraftGroup
from upo.data.views import PairedView, pairs_of
from upo.methods.common.base import LossTerm, Method, Stage
from upo.methods.dpo import DPO
from upo.methods.orpo import ORPO
from upo.models.logps import ResponseLogps


def rationale_loss(
    rationale_logps: Float[Tensor, "pairs"], *, gamma: float, log_sigmoid: bool = False
) -> Float[Tensor, "pairs"]:
    """-gamma log p(r | x, w > l) as in the paper, or -log sigmoid(gamma log p(r | x, w > l)) as in the official code.

    One value per pair, unreduced.
    """
    return -logsigmoid(gamma * rationale_logps) if log_sigmoid else -gamma * rationale_logps


class RationaleView(PairedView):
    """Pairs with a rationale each: rows 3i, 3i + 1, 3i + 2 are chosen, rejected, rationale."""

    wants = "pair of responses of different preference with a rationale"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        pairs = pairs_of(example, max_pairs) if example.rationale else []
        return [Draft(pair, (question(pair),)) for pair in pairs]


def question(pair: Example) -> DraftGroup:
    """A prompt that shows both responses and asks why the chosen one is better, with the rationale as its response."""
    chosen, rejected = (response.shown for response in pair.responses)
    why = f"Another answer:\n{rejected}\n\nWhy is the first one better?"
    if isinstance(pair.prompt, str):
        prompt: Prompt = f"{pair.prompt}{chosen}\n\n{why}\n\n"
    else:
        prompt = (*pair.prompt, {"role": "assistant", "content": chosen}, {"role": "user", "content": why})
    return DraftGroup("rationale", prompt, (Response(pair.rationale or ""),))


class Rationales(Method):
    """Adds the rationale to a pairwise method: `class RDPO(Rationales, DPO)`."""

    view = RationaleView()

    def __init__(self, *args: Any, gamma: NonNegativeFloat = 1e-3, log_sigmoid: bool = False, **kwargs: Any):
        """
        Args:
            gamma: weight of the rationale's log-likelihood, a sum over its tokens, in 1/nats (official command: 0.001;
                official default file: 0.1).
            log_sigmoid: whether to use the official code's term instead of the paper's (paper: no); with gamma 0 it is
                a constant log 2.
        """
        super().__init__(*args, **kwargs)
        self.gamma, self.log_sigmoid = gamma, log_sigmoid

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        rationale = rationale_loss(logps.logps[2::3], gamma=self.gamma, log_sigmoid=self.log_sigmoid)
        return super().terms(batch, logps[batch.own_rows], statistics) | {"rationale": LossTerm(rationale, "prompts")}

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        super().update_metrics(stage, batch, logps[batch.own_rows])


class RDPO(Rationales, DPO):
    """DPO with rationales."""

    metric_names = (*DPO.metric_names, "loss/preference", "loss/rationale")
    initial_loss = None


class RORPO(Rationales, ORPO):
    """ORPO with rationales."""

    metric_names = (*ORPO.metric_names, "loss/rationale")
