"""KTO-zero: KTO whose reference point is fixed at z0 = 0 (Ethayarajh et al., 2024), https://arxiv.org/abs/2402.01306.

Differs from KTO: no mismatched responses are needed, which saves a forward pass of policy and reference; the loss of a
response depends only on its own log-ratio. With both weights 1 the two losses of a pair sum to APO-zero
(`apo_anchored.py`). Verified: the formula (TRL: `apo_zero_unpaired`); the name is ours.
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
