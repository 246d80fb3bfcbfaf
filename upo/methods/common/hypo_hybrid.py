"""HyPO, Hybrid Preference Optimization (Song et al., NeurIPS 2024), https://arxiv.org/abs/2406.01462.

DPO on offline pairs plus the reverse KL to the reference on responses that the policy samples during training:

    L = -log sigmoid(beta (r_w - r_l)) + lambda KL(policy || reference)

Here are the losses of its two parts. Without sampling during training the second part has no data and the method is
DPO, so there is no class yet: it comes with rollouts. Partly verified: the structure and the leave-one-out baseline
are; lambda's default is unknown. Not the namesake that changes DPO's margin (2602.11902).
"""

from jaxtyping import Float
from torch import Tensor

from upo.errors import UserError
from upo.methods.dpo import dpo_loss

hypo_preference_loss = dpo_loss
"""The offline part is DPO's loss."""


def reverse_kl_surrogate(
    logps: Float[Tensor, "prompts k"], reference_logps: Float[Tensor, "prompts k"]
) -> Float[Tensor, "prompts k"]:
    """log policy(y) sg[log policy(y) - log reference(y) - b], y sampled from the policy: k responses a prompt.

    Its gradient, not its value, estimates that of KL(policy || reference). b is the mean of the other responses'
    log-ratios (leave-one-out), 0 for k = 1. Without the detached factor the gradient would be 0 on average.
    """
    k = logps.shape[1]
    if k < 1:
        raise UserError("the KL needs at least one sampled response a prompt")
    logratio = (logps - reference_logps).detach()
    baseline = (logratio.sum(1, keepdim=True) - logratio) / max(k - 1, 1)
    return logps * (logratio - baseline)
