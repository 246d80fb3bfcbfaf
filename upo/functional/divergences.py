"""f-divergences D_f(policy || reference) = E_reference f(u), u = policy / reference, as the rewards that they imply.

A reward-maximising policy under the penalty beta * D_f obeys reward(y) = beta f'(u(y)) + constant of the prompt. Each
class gives f' as a function of the log-ratio r = log u; constants are dropped, for they cancel within a pair.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from jsonargparse.typing import OpenUnitInterval
from torch import Tensor
from torch.nn.functional import logsigmoid

CAP = 80.0
"""Largest exponent, in nats: exp(88.8) is infinite in float32, and the difference of two infinities is NaN.

A score beyond it is constant, without gradient.
"""


class Divergence(ABC):
    """A divergence by its score f'(u)."""

    @abstractmethod
    def __call__(self, logratio: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """f'(exp(r)) for each log-ratio r, in units of reward / beta; increasing in r."""


class ReverseKL(Divergence):
    """KL(policy || reference), f = u log u: the score is r."""

    def __call__(self, logratio: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return logratio


class ForwardKL(Divergence):
    """KL(reference || policy), f = -log u: the score is -exp(-r)."""

    def __call__(self, logratio: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return -torch.exp((-logratio).clamp(max=CAP))


class JensenShannon(Divergence):
    """f = u log u - (u + 1) log((u + 1) / 2): the score is log 2 + log sigmoid(r), never above log 2."""

    def __call__(self, logratio: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return math.log(2) + logsigmoid(logratio)


class Alpha(Divergence):
    """The score (1 - exp(-alpha r)) / alpha: between reverse KL (alpha to 0) and forward KL (alpha to 1)."""

    def __init__(self, alpha: OpenUnitInterval = 0.5):
        """
        Args:
            alpha: in (0, 1), as the f-DPO paper writes it; other codebases mean 1 - alpha.
        """
        self.alpha = alpha

    def __call__(self, logratio: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return -torch.expm1((-self.alpha * logratio).clamp(max=CAP)) / self.alpha
