"""Several rewards as one: a weighted sum, with its members kept beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev

from upo.data.example import Example, Prompt
from upo.data.rewards import Reward, VectorReward, checked, fit_all
from upo.errors import UserError


class Mixture(VectorReward):
    """sum_i w_i r_i, or with `normalize` sum_i w_i (r_i - m_i) / s_i, over named rewards r_i.

    m_i and s_i are mean and standard deviation over all responses of the training split. They are stored in the
    checkpoint and read back from it: a resumed run must find the same ones, an evaluation uses those of the training.
    Range: that of its members; normalised, about -3 to 3 times the weights, with mean 0 (UPO's `lam` is per unit of
    reward: 5 would be far too much for that). Larger is better as long as
    members of which less is better have negative weights. The members' own values, not normalised, stand beside the sum
    as `<name>/<member>`.
    """

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float], normalize: bool = False):
        """
        Args:
            rewards: the members, by name.
            weights: w_i, of either sign, one for each member.
            normalize: gives each member mean 0 and standard deviation 1 first, so that the weights compare.
        """
        if not rewards or set(rewards) != set(weights):
            raise UserError(f"Mixture: give one weight a reward: rewards {sorted(rewards)}, weights {sorted(weights)}")
        self.parts: Mapping[str, Reward] = rewards
        self.weights, self.normalize = {name: float(weights[name]) for name in rewards}, normalize
        self.scales: dict[str, tuple[float, float]] = {}
        """Mean and standard deviation by member, once fitted."""

    @property
    def unfitted(self) -> bool:
        return (self.normalize and not self.scales) or any(r.unfitted for r in self.parts.values())

    def fit(self, train: Sequence[Example], held_out: Sequence[Example], cache_dir: str | Path | None = None) -> None:
        from upo.data.annotate import annotate

        fit_all(self.parts, train, held_out, cache_dir)
        if not self.normalize or self.scales:
            return
        rows = [r.rewards for e in annotate(train, self.parts, cache_dir) for r in e.responses]
        for name in self.parts:
            # both are correctly rounded whatever the order of the rows, so that a resume finds the same bits
            column = [row[name] for row in rows]
            mean, deviation = fmean(column), pstdev(column)
            if deviation == 0:
                raise UserError(f"Mixture: `{name}` is {mean:g} for every training response; leave it out")
            self.scales[name] = (mean, deviation)

    def state(self) -> dict[str, float]:
        own = {f"{name}.{kind}": x for name, pair in self.scales.items() for kind, x in zip(KINDS, pair, strict=True)}
        return own | {f"{name}/{k}": x for name, reward in self.parts.items() for k, x in reward.state().items()}

    def restore(self, state: Mapping[str, float]) -> None:
        if self.normalize and all(f"{name}.{kind}" in state for name in self.parts for kind in KINDS):
            self.scales = {name: (state[f"{name}.mean"], state[f"{name}.deviation"]) for name in self.parts}
        for name, reward in self.parts.items():
            reward.restore({k.removeprefix(f"{name}/"): x for k, x in state.items() if k.startswith(f"{name}/")})

    def vector(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        return {name: checked(name, reward(prompts, responses), len(responses)) for name, reward in self.parts.items()}

    def total(self, values: Mapping[str, float]) -> float:
        if not self.normalize:
            return sum(w * values[name] for name, w in self.weights.items())
        if not self.scales:
            raise UserError("Mixture: `normalize` needs a training split to learn from; here there is none: set it off")
        return sum(w * (values[n] - self.scales[n][0]) / self.scales[n][1] for n, w in self.weights.items())

    def fingerprint(self) -> str:
        members = {name: reward.fingerprint() for name, reward in self.parts.items()}
        return f"Mixture 1 {members} {self.weights} {self.normalize} {self.scales}"


KINDS = ("mean", "deviation")
