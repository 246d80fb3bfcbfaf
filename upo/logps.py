"""All that a loss may look at."""

from attrs import field, frozen
from jaxtyping import Float, Int
from torch import Tensor

from upo.errors import UserError


@frozen(eq=False)
class ResponseLogps:
    """Log-probs of N responses in nats, and what is known about them."""

    logps: Float[Tensor, "N"]
    """Log-prob of each response under the policy: the sum over its tokens, EOS included."""
    lengths: Int[Tensor, "N"]
    """Scored tokens a response."""
    prompt_index: Int[Tensor, "N"]
    """Which prompt each response answers."""
    reference_logps: Float[Tensor, "N"] | None = None
    """The same sums under the reference; never carries a gradient."""
    rewards: Float[Tensor, "N M"] | None = None
    """Annotated auxiliary rewards."""
    extras: dict[str, Tensor] = field(factory=dict)
    """What a method asked the policy for besides log-probs, e.g. `prompt_hidden` [B, D]."""

    @property
    def mean(self) -> Float[Tensor, "N"]:
        """Log-prob a token: the sum divided by the length."""
        return self.logps / self.lengths

    @property
    def logratio(self) -> Float[Tensor, "N"]:
        """log(policy / reference) of each response, in nats.

        Raises:
            UserError: the run has no reference.
        """
        if self.reference_logps is None:
            raise UserError("this loss needs reference log-probs; set `model.reference`, e.g. to FrozenReference")
        return self.logps - self.reference_logps

    def __getitem__(self, rows: slice | Tensor) -> "ResponseLogps":
        """The same for some of the rows; extras stay as they are."""

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows]

        return ResponseLogps(
            self.logps[rows],
            self.lengths[rows],
            self.prompt_index[rows],
            pick(self.reference_logps),
            pick(self.rewards),
            self.extras,
        )
