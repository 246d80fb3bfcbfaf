"""All that a loss may look at."""

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import field, frozen
from jaxtyping import Float, Int
from torch import Tensor

from upo.errors import UserError

Axis = Literal["token", "response", "prompt"]

AXIS: dict[str, Axis] = {
    "logps": "response",
    "reference_logps": "response",
    "reward": "response",
    "token_logps": "token",
    "entropy": "token",
    "top_logp": "token",
    "sum_p2": "token",
    "kl": "token",
    "reverse_kl": "token",
    "hidden": "token",
    "layers": "token",
    "prompt_hidden": "prompt",
    "prompt_mean": "prompt",
}
"""What each quantity has one value or row of, by name; `Policy.forward` says what they are."""

DIVERGENCES = frozenset({"kl", "reverse_kl"})
"""Quantities that compare a policy's distributions with another model's."""


@frozen(eq=False)
class ResponseLogps:
    """Log-probs of N responses in nats, and what is known about them; [B, K] where lists are looked at."""

    logps: Float[Tensor, "*N"]
    """Log-prob of each response under the policy: the sum over its tokens, EOS included."""
    lengths: Int[Tensor, "*N"]
    """Scored tokens a response."""
    prompt_index: Int[Tensor, "*N"]
    """Which prompt each response answers."""
    reference_logps: Float[Tensor, "*N"] | None = None
    """The same sums under the reference; never carries a gradient."""
    rewards: Float[Tensor, "*N M"] | None = None
    """Annotated auxiliary rewards."""
    outputs: dict[str, Tensor] = field(factory=dict)
    """What a method asked the policy for besides log-probs, e.g. `prompt_hidden` [B, D], `token_logps` [tokens]; each
    along its axis."""
    reference_outputs: dict[str, Tensor] = field(factory=dict)
    """The same of the reference, e.g. `token_logps` [tokens]; never carries a gradient."""
    response_index: Int[Tensor, "tokens"] | None = None
    """Which of the N responses a token belongs to; None where nothing is known by token."""

    @property
    def mean(self) -> Float[Tensor, "*N"]:
        """Log-prob a token: the sum divided by the length."""
        return self.logps / self.lengths

    @property
    def logratio(self) -> Float[Tensor, "*N"]:
        """log(policy / reference) of each response, in nats.

        Raises:
            UserError: the run has no reference.
        """
        return self.logps - self.reference

    @property
    def reference(self) -> Float[Tensor, "*N"]:
        """Log-prob of each response under the reference, for losses that treat it in another way than `logratio`.

        Raises:
            UserError: the run has no reference.
        """
        if self.reference_logps is None:
            raise UserError("this loss needs reference log-probs; set `model.reference`, e.g. to FrozenReference")
        return self.reference_logps

    @property
    def annotated(self) -> Float[Tensor, "*N M"]:
        """Auxiliary rewards, a column for each that the method names in `rewards`."""
        assert self.rewards is not None, "the data module brings the columns named in `rewards`"
        return self.rewards

    def objective(self, weights: Mapping[str, float]) -> Float[Tensor, "*N"]:
        """R = sum_i w_i r_i, weights in the order of the columns."""
        return objective(self.annotated, weights)

    def sums(self, values: Float[Tensor, "tokens"]) -> Float[Tensor, "N"]:
        """Values of the tokens (outputs), added up over each response."""
        assert self.response_index is not None, "a list's responses no longer know their tokens"
        return values.new_zeros(len(self.lengths)).index_add(0, self.response_index, values)

    def __getitem__(self, rows: slice | Tensor) -> "ResponseLogps":
        """The same for some of the rows, or for rows in another shape.

        Values by token are those of the chosen responses, one behind the other, and left out where rows get another
        shape; values by prompt stay whole, since `prompt_index` points to them.
        """
        tokens, response_index = self._tokens(torch.arange(len(self.lengths), device=self.lengths.device)[rows])

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows]

        def along(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            places = {"token": tokens, "response": rows, "prompt": slice(None)}
            return {name: x[at] for name, x in values.items() if (at := places[AXIS[name]]) is not None}

        return ResponseLogps(
            self.logps[rows],
            self.lengths[rows],
            self.prompt_index[rows],
            pick(self.reference_logps),
            pick(self.rewards),
            along(self.outputs),
            along(self.reference_outputs),
            response_index,
        )

    def _tokens(self, responses: Int[Tensor, "..."]) -> tuple[Int[Tensor, "some"] | None, Int[Tensor, "some"] | None]:
        """Places of the tokens of these responses, one response behind the other, and the response of each."""
        by_token = any(AXIS[name] == "token" for name in (*self.outputs, *self.reference_outputs))
        if not by_token or responses.ndim != 1:
            return None, None
        assert self.response_index is not None, "values by token need to know whose they are"
        number = torch.full_like(self.lengths, -1).scatter(0, responses, torch.arange(len(responses)).to(responses))
        of = number[self.response_index]
        tokens = of.argsort(stable=True)[(of < 0).sum() :]
        return tokens, of[tokens]


def objective(rewards: Float[Tensor, "*N M"], weights: Mapping[str, float]) -> Float[Tensor, "*N"]:
    """R = sum_i w_i r_i, weights in the order of the columns.

    Not a matrix product: those are rounded to bfloat16 under mixed precision.
    """
    return (rewards * rewards.new_tensor(list(weights.values()))).sum(-1)
