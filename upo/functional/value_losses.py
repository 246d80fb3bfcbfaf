"""What a value head is fitted with: functions of the error u = R - V, each with another optimum V."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from jaxtyping import Float
from jsonargparse.typing import OpenUnitInterval, PositiveFloat
from torch import Tensor

from upo.errors import UserError


class ValueLoss(ABC):
    """A loss of the error u = R - V, unreduced."""

    @abstractmethod
    def __call__(self, error: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """One value an error."""

    def checked(self, lam: float) -> Self:
        """This loss, for weights exp(lam (R - V)).

        Raises:
            UserError: it is one for another lam.
        """
        return self


class Expectile(ValueLoss):
    """|tau - 1(u < 0)| u^2 (Kostrikov et al., 2021, equation 5): V is the tau-expectile of R given the prompt."""

    def __init__(self, tau: OpenUnitInterval = 0.7):
        """
        Args:
            tau: 0.5 gives the mean; larger looks at the better responses of a prompt. The UPO paper states none; IQL
                uses 0.7 to 0.9.
        """
        self.tau = tau

    def __call__(self, error: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return (self.tau - (error < 0).to(error.dtype)).abs() * error**2


class Linex(ValueLoss):
    """exp(lam u) - lam u - 1: V = log E exp(lam R) / lam, which makes a prompt's mean weight exp(lam (R - V)) 1."""

    def __init__(self, lam: PositiveFloat = 5.0):
        """
        Args:
            lam: the same lambda as in the weights; methods refuse another one.
        """
        self.lam = lam

    def checked(self, lam: float) -> Self:
        if lam not in (0.0, self.lam):  # without weights any V will do
            raise UserError(
                f"value_loss: Linex has lam {self.lam:g}, the weights have {lam:g}, so that their mean would not be 1; "
                f"set model.value_loss.init_args.lam: {lam:g}"
            )
        return self

    def __call__(self, error: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        x = self.lam * error
        # Beyond 20 a straight line of the same slope: exp would overflow, and its gradient would own the whole batch.
        safe = x.clamp(max=20)
        return torch.expm1(safe) - x + torch.exp(safe) * (x - safe)
