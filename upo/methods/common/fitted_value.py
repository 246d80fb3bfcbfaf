"""Methods that train on responses of positive advantage A = r - V(x), computed once before the first step.

r is the label (1 for desirable responses) plus R, the weighted auxiliary rewards. Before training starts, each distinct
prompt goes through the initial policy, the ranks sharing the work, and a value head on these hidden states is fitted to
the rewards of the training responses. Responses without a positive advantage are dropped; the others get their
advantage as a column, which samplers may read too. All ranks use rank 0's values. Checkpoints hold the advantages, so
that a resumed run trains on the same data in the same order; the head is not saved.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor

from upo.data.batch import Batch
from upo.data.module import PreferenceData
from upo.data.priority import ADVANTAGE
from upo.data.rounds import Round, Split
from upo.data.units import Group, Unit
from upo.data.views import SingleView
from upo.errors import UserError
from upo.functional.value_fit import fit_value
from upo.methods.common.base import LossTerm, Method, Stage
from upo.methods.common.needs import Needs
from upo.methods.common.value_head import ValueHead
from upo.methods.upo import REWARD_WEIGHTS
from upo.models.logps import ResponseLogps
from upo.models.scoring import score
from upo.runtime.collectives import Ranks, sum_over_ranks


class FittedValue(Method):
    """Methods that learn from responses of positive advantage: subclasses define `loss(responses, advantage)`."""

    view = SingleView()
    metric_names = ("logps", "advantages", "desirable")

    def __init__(
        self,
        *args: Any,
        reward_weights: dict[str, float] | None = None,
        undesirable_reward: float = 0.0,
        value_warmup_steps: PositiveInt = 100,
        value_lr: PositiveFloat = 1e-3,
        **kwargs: Any,
    ):
        """
        Args:
            reward_weights: w_i by name of a reward in `data.rewards`, added to the label; null is {readability: 0.05,
                safety: 0.95} (UPO paper), {} the label alone.
            undesirable_reward: label of an undesirable response, where a desirable one has 1 (ours: 0; oPPO has -1).
            value_warmup_steps: steps, of `data.pairs_per_step` responses each, that fit V before training (ours: 100,
                as in UPO).
            value_lr: learning rate of these steps (ours: 0.001).
        """
        self.reward_weights = dict(REWARD_WEIGHTS if reward_weights is None else reward_weights)
        self.needs |= Needs(rewards=self.reward_weights)
        super().__init__(*args, **kwargs)
        self.undesirable_reward = undesirable_reward
        self.value_warmup_steps, self.value_lr = value_warmup_steps, float(value_lr)
        self.advantages: dict[str, Tensor] = {}
        """A of every response of the data set, by split (train, val)."""

    def loss(self, logps: ResponseLogps, advantage: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """One value per response [N], unreduced; every advantage is above 0."""
        raise NotImplementedError

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return {"preference": LossTerm(self.loss(logps, batch[ADVANTAGE]), "responses")}

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        desirable = batch.preferred.float()
        self.means(stage).update(logps=logps.logps, advantages=batch[ADVANTAGE], desirable=desirable)

    # ---- before training -------------------------------------------------------------------------------------

    def prepare(self, round: Round) -> Round:
        """The units of positive advantage, with the column `ADVANTAGE`."""
        if not self.advantages:
            self.advantages = self._fitted(self.trainer.datamodule, round)  # type: ignore[attr-defined]
        train, val = _positive(round.train, self.advantages["train"]), _positive(round.val, self.advantages["val"])
        if not len(train):
            raise UserError(
                "no response has a reward above V; fit V with more steps (set model.value_warmup_steps higher)"
            )
        return super().prepare(Round(train, val, round.number))

    @torch.no_grad()
    def _fitted(self, data: PreferenceData, round: Round) -> dict[str, Tensor]:
        """A of every response by split, from a value head fitted on the training split."""
        units = [*round.train.units, *round.val.units]
        prompts: dict[tuple[int, ...], int] = {}
        prompt_index = torch.tensor([prompts.setdefault(tuple(u.prompt), len(prompts)) for u in units])
        targets = torch.tensor([self.target(u) for u in units])
        first_unit = {tuple(u.prompt): u for u in reversed(units)}
        states = self._prompt_states([first_unit[p] for p in prompts], data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(data.seed)
            head = ValueHead(states.shape[1], dropout=0.0)
        n, rank = len(round.train), self.trainer.global_rank
        fit_value(
            head,
            states,
            prompt_index[:n],
            targets[:n],
            steps=self.value_warmup_steps,
            batch_size=data.pairs_per_step,
            lr=self.value_lr,
            seed=data.seed,
        )
        value = head(states)[prompt_index].to(self.device)
        advantage = targets - sum_over_ranks(value if rank == 0 else torch.zeros_like(value)).cpu()
        if rank == 0:
            explained = 1 - advantage[:n].var(correction=0) / targets[:n].var(correction=0).clamp(min=1e-12)
            positive = int((advantage[:n] > 0).sum())
            print(f"V explains {explained:.1%} of the reward; {positive} of {n} responses have a positive advantage")
        return {"train": advantage[:n], "val": advantage[n:]}

    def target(self, unit: Unit) -> float:
        """r = label + R of a unit's only response."""
        (response,) = unit.example.responses
        label = 1.0 if response.desirable else self.undesirable_reward
        return label + sum(w * response.rewards[name] for name, w in self.reward_weights.items())

    def _prompt_states(self, units: Sequence[Unit], data: PreferenceData) -> Float[Tensor, "B D"]:
        """The policy's last hidden state at the end of each prompt, on every rank; ranks share the work."""
        groups = [Group(u.prompt, (u.responses[0][:1],)) for u in units]  # any token will do: only the prompt is read
        ranks = Ranks(self.trainer.global_rank, self.trainer.world_size)
        budget = {"layout": data.layout, "max_tokens": data.tokens_per_microbatch, "device": self.device}
        return score(self.policy, groups, ("prompt_hidden",), ranks=ranks, title="states of prompts", **budget)[
            "prompt_hidden"
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["advantages"] = self.advantages

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.advantages = checkpoint["advantages"]


def _positive(split: Split, advantage: Float[Tensor, "units"]) -> Split:
    """The units of positive advantage, with the column `ADVANTAGE`."""
    if len(advantage) != len(split):
        raise UserError(
            f"the checkpoint has the advantages of {len(advantage)} responses, the data has {len(split)}; "
            "resume with the data of the original run"
        )
    return split.with_column(ADVANTAGE, advantage).where(advantage > 0)
