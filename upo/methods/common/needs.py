"""What a method needs of policy, reference and data: declared once, checked before any data are read."""

from collections.abc import Iterable

from attrs import evolve, field, frozen
from attrs.converters import optional
from torch import Tensor

from upo.data.layout import Responses
from upo.errors import UserError, did_you_mean
from upo.models.logps import AXIS, DIVERGENCES
from upo.models.policy import Policy
from upo.models.reference import Reference

SUMS: frozenset[str] = frozenset()
"""No further quantity than the summed log-prob of each response."""


@frozen
class Needs:
    """The needs of a method; `a | b` are those of both. Quantities have the names of `upo.models.logps.AXIS`.

    Most methods of pairs: `Needs(reference=SUMS, reward=SUMS)`; SFT: `Needs()`; TDPO, whose reward reads a divergence:
    `Needs(policy={"kl"}, reference=SUMS, reward={"kl"})`.
    """

    policy: frozenset[str] = field(default=SUMS, converter=frozenset)
    """Quantities of the policy in addition to `logps`."""
    reference: frozenset[str] | None = field(default=None, converter=optional(frozenset))
    """The same of the reference; None: the method uses no reference. Where there are any, the reference runs in every
    step, even if log-probs are stored."""
    reward: frozenset[str] | None = field(default=None, converter=optional(frozenset))
    """Which of these quantities `reward(logps)` reads; None: the method defines no implicit reward."""
    rewards: tuple[str, ...] = field(default=(), converter=tuple)
    """Names of the auxiliary rewards that the data must have, in the order of their columns."""
    normalized: bool = True
    """Whether `logps` must be log-probs; if not, any score that is higher for better responses will do."""
    control_tokens: tuple[str, ...] = field(default=(), converter=tuple)
    """Control tokens between prompt and response; generation uses the first one."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.policy | other.policy,
            _either(self.reference, other.reference),
            _either(self.reward, other.reward),
            dict.fromkeys((*self.rewards, *other.rewards)),
            self.normalized or other.normalized,
            dict.fromkeys((*self.control_tokens, *other.control_tokens)),
        )

    @property
    def divergences(self) -> frozenset[str]:
        """Quantities that compare the policy's next-token distributions with the reference's."""
        return self.policy & DIVERGENCES

    @property
    def of_reference(self) -> frozenset[str]:
        """All quantities that the reference must compute; divergences need its hidden states."""
        return (self.reference or SUMS) | ({"hidden"} if self.divergences else SUMS)

    @property
    def for_reward(self) -> "Needs":
        """The part of these needs that the implicit reward reads."""
        read = self.reward or SUMS
        return evolve(self, policy=self.policy & read, reference=self.reference and self.reference & read)


def _either(a: frozenset[str] | None, b: frozenset[str] | None) -> frozenset[str] | None:
    """The union; None only if both are None."""
    return b if a is None else a if b is None else a | b


class Shared(Reference):
    """Placeholder for the reference in the parts of a sum of losses (MPO): only the sum's own reference is used."""

    def build(self, policy: Policy) -> None:
        """Does nothing: the sum builds its reference."""

    def logps(self, responses: Responses) -> Tensor:
        raise NotImplementedError("the sum of losses computes reference log-probs, not its parts")


def check_needs(method: str, needs: Needs, policy: Policy, reference: Reference | None) -> None:
    """Checks that policy and reference provide what a method needs, and that no unused reference is given.

    Raises:
        UserError: says what is missing or unused, and what to set instead.
    """
    if isinstance(reference, Shared):
        return
    if needs.reference is not None and reference is None:
        raise UserError(f"{method} needs a reference; set `model.reference: FrozenReference` (a copy of the policy)")
    if needs.reference is None and reference is not None:
        raise UserError(f"{method} uses no reference; remove `model.reference` (it would only cost memory)")
    scores = frozenset({"logps"} if needs.normalized else ())
    _check_provided(method, needs.policy | scores, "policy", policy)
    if reference is not None:
        compared = SUMS if "hidden" in reference.provides else needs.divergences
        _check_provided(method, (needs.reference or SUMS) | compared | scores, "reference", reference)


def _check_provided(method: str, wanted: frozenset[str], role: str, scorer: Policy | Reference) -> None:
    for name in sorted(wanted - AXIS.keys()):
        raise UserError(f"{method}: no quantity of a {role} is called `{name}`; {did_you_mean(name, AXIS)}")
    if missing := wanted - scorer.provides:
        raise UserError(
            f"{method} needs {_listed(missing)} from the {role}, {type(scorer).__name__} provides only "
            f"{_listed(scorer.provides)}; {scorer.instead}"
        )


def _listed(names: Iterable[str]) -> str:
    """E.g. "kl, token_logps of each token and logps of each response"."""
    by_axis: dict[str, list[str]] = {}
    for name in sorted(names):
        by_axis.setdefault(AXIS.get(name, "response"), []).append(name)
    return " and ".join(f"{', '.join(group)} of each {axis}" for axis, group in by_axis.items())
