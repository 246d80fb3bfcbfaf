"""Log-probs and other quantities of responses: the input of every loss."""

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
"""The axis of each quantity: one value (or row) per token, response or prompt. `Policy.forward` describes them."""

DIVERGENCES = frozenset({"kl", "reverse_kl"})
"""Quantities that compare a policy's distributions with another model's."""


@frozen(eq=False)
class ResponseLogps:
    """Log-probs of N responses in nats, with lengths, rewards and other quantities; [B, K] instead of [N] for lists."""

    logps: Float[Tensor, "*N"]
    """Log-prob of each response under the policy: the sum over its tokens, EOS included."""
    lengths: Int[Tensor, "*N"]
    """Scored tokens of each response."""
    prompt_index: Int[Tensor, "*N"]
    """Index in [0, B) of the prompt that each response answers."""
    reference_logps: Float[Tensor, "*N"] | None = None
    """The same sums under the reference; never carries a gradient."""
    rewards: Float[Tensor, "*N M"] | None = None
    """Annotated auxiliary rewards, one column per reward."""
    outputs: dict[str, Tensor] = field(factory=dict)
    """Further quantities of the policy that the method needs, e.g. `prompt_hidden` [B, D], `token_logps` [tokens]; each
    along its axis."""
    reference_outputs: dict[str, Tensor] = field(factory=dict)
    """The same of the reference, e.g. `token_logps` [tokens]; never carries a gradient."""
    response_index: Int[Tensor, "tokens"] | None = None
    """Index in [0, N) of the response that each token belongs to; None if there are no quantities by token."""

    @property
    def mean(self) -> Float[Tensor, "*N"]:
        """Mean log-prob per token: the sum divided by the length."""
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
        """Log-prob of each response under the reference, for losses that do not only use `logratio`.

        Raises:
            UserError: the run has no reference.
        """
        if self.reference_logps is None:
            raise UserError("this loss needs reference log-probs; set `model.reference`, e.g. to FrozenReference")
        return self.reference_logps

    @property
    def annotated(self) -> Float[Tensor, "*N M"]:
        """Auxiliary rewards, one column for each name in the method's `needs.rewards`."""
        assert self.rewards is not None, "the data have the columns named in `needs.rewards`"
        return self.rewards

    def objective(self, weights: Mapping[str, float]) -> Float[Tensor, "*N"]:
        """R = sum_i w_i r_i, weights in the order of the columns."""
        return objective(self.annotated, weights)

    def sums(self, values: Float[Tensor, "tokens"]) -> Float[Tensor, "N"]:
        """Sums of values by token over each response."""
        assert self.response_index is not None, "responses of lists have no quantities by token"
        return values.new_zeros(len(self.lengths)).index_add(0, self.response_index, values)

    def __getitem__(self, rows: slice | Tensor) -> "ResponseLogps":
        """The same for some of the responses, or for responses arranged as [B, K].

        Quantities by token are those of the selected responses, concatenated; they are left out if `rows` is not 1-D.
        Quantities by prompt stay whole, because `prompt_index` refers to them.
        """
        tokens, response_index = self._tokens(torch.arange(len(self.lengths), device=self.lengths.device)[rows])

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows]

        def select(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            indices = {"token": tokens, "response": rows, "prompt": slice(None)}
            return {name: x[i] for name, x in values.items() if (i := indices[AXIS[name]]) is not None}

        return ResponseLogps(
            self.logps[rows],
            self.lengths[rows],
            self.prompt_index[rows],
            pick(self.reference_logps),
            pick(self.rewards),
            select(self.outputs),
            select(self.reference_outputs),
            response_index,
        )

    def _tokens(self, responses: Int[Tensor, "..."]) -> tuple[Int[Tensor, "some"] | None, Int[Tensor, "some"] | None]:
        """Indices of the tokens of these responses, response by response, and the position in `responses` of each."""
        by_token = any(AXIS[name] == "token" for name in (*self.outputs, *self.reference_outputs))
        if not by_token or responses.ndim != 1:
            return None, None
        assert self.response_index is not None, "quantities by token need `response_index`"
        position = torch.full_like(self.lengths, -1).scatter(0, responses, torch.arange(len(responses)).to(responses))
        token_position = position[self.response_index]
        tokens = token_position.argsort(stable=True)[(token_position < 0).sum() :]
        return tokens, token_position[tokens]


def objective(rewards: Float[Tensor, "*N M"], weights: Mapping[str, float]) -> Float[Tensor, "*N"]:
    """R = sum_i w_i r_i, weights in the order of the columns.

    Without a matrix product, which mixed precision would round to bfloat16.
    """
    return (rewards * rewards.new_tensor(list(weights.values()))).sum(-1)
