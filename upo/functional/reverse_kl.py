"""A surrogate whose gradient estimates that of KL(policy || reference), from responses that the policy sampled.

The online part of HyPO, Hybrid Preference Optimization (Song et al., NeurIPS 2024), https://arxiv.org/abs/2406.01462.
Partly verified: the leave-one-out baseline is; the weight's default is unknown.
"""

from jaxtyping import Float
from torch import Tensor

from upo.errors import UserError


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
