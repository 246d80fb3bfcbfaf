"""SFT, supervised fine-tuning: likelihood of the chosen (desirable) responses; usually the stage before all others.

The loss is the mean over all response tokens of the GLOBAL step: long responses have a larger weight than short ones,
and the value does not depend on how the step is split into micro-batches.
"""

from jaxtyping import Float
from torch import Tensor

from upo.data.batch import Batch
from upo.data.views import DemonstrationView
from upo.methods.common.base import LossTerm, Method, Stage
from upo.models.logps import ResponseLogps


def sft_loss(logps: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Negative log-likelihood of each response in nats, summed over its tokens, unreduced."""
    return -logps


class SFT(Method):
    """Supervised fine-tuning on chosen responses."""

    view = DemonstrationView()
    metric_names = ("nll_per_token", "logps/chosen", "lengths/chosen")

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return {"nll": LossTerm(sft_loss(logps.logps), "tokens")}

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        self.means(stage).update(**{
            "nll_per_token": (-logps.mean, logps.lengths),
            "logps/chosen": logps.logps,
            "lengths/chosen": logps.lengths.float(),
        })  # fmt: skip
