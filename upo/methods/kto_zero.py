"""KTO-zero: KTO whose reference point is fixed at z0 = 0 (Ethayarajh et al., 2024), https://arxiv.org/abs/2402.01306.

Differs from KTO by needing no mismatched responses: a forward pass of policy and reference less. Each response is
anchored at the reference itself. On a pair with both weights 1 the two losses add up to APO-zero (`apo_anchored.py`).
The formula is verified; the name is this project's.
"""

import torch
from torch import Tensor

from upo.data.batch import Step
from upo.data.views import UnpairedView
from upo.methods.common.families import UnpairedMethod
from upo.methods.kto import KTO


class KTOZero(KTO):
    """Kahneman-Tversky Optimization with the reference point 0."""

    view = UnpairedView()
    logged_statistics = ()
    metric_names = UnpairedMethod.metric_names

    def statistics(self, step: Step) -> dict[str, Tensor]:
        return {"kl": torch.zeros((), device=self.device)}
