"""Advantages that are known before the first step: V is fitted on prompts, frozen, and used once.

`A = r - V(x)` for every response of the data set, r = its label (desirable 1) + designers' R. Before training starts,
each distinct prompt goes through the policy as it starts, all ranks sharing the work; a value head is fitted to the
training responses' rewards on these states. Then V has done its work: responses without a positive advantage leave the
data, the others carry theirs as a reward column, which samplers may read too. Checkpoints hold the advantages, so that
a resumed run trains on the same data in the same order; the head itself is not kept. Ranks agree by taking rank 0's.
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
            reward_weights: w_i by name of a reward in `data.rewards`, added to the label; the UPO paper's and default:
                {readability: 0.05, safety: 0.95}; {} takes the label alone.
            undesirable_reward: of an undesirable response, a desirable one has 1 [C]; -1 is oPPO's.
            value_warmup_steps: steps of `data.pairs_per_step` responses that fit V before training.
            value_lr: their learning rate.
        """
        self.reward_weights = dict(REWARD_WEIGHTS if reward_weights is None else reward_weights)
        self.needs |= Needs(rewards=self.reward_weights)
        super().__init__(*args, **kwargs)
        self.undesirable_reward = undesirable_reward
        self.value_warmup_steps, self.value_lr = value_warmup_steps, float(value_lr)
        self.advantages: dict[str, Tensor] = {}
        """Of every response as it was read, by split."""

    def loss(self, logps: ResponseLogps, advantage: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """One value per response [N], unreduced; all advantages are positive."""
        raise NotImplementedError

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return {"preference": LossTerm(self.loss(logps, batch[ADVANTAGE]), "responses")}

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        good = batch.preferred.float()
        self.means(stage).update(logps=logps.logps, advantages=batch[ADVANTAGE], desirable=good)

    # ---- before training -------------------------------------------------------------------------------------

    def prepare(self, round: Round) -> Round:
        """Units of positive advantage, with it as a column."""
        if not self.advantages:
            self.advantages = self._fitted(self.trainer.datamodule, round)  # type: ignore[attr-defined]
        made = Round(
            _positive(round.train, self.advantages["train"]), _positive(round.val, self.advantages["val"]), round.number
        )
        if not len(made.train):
            raise UserError("V is above the reward of every response; fit it longer (model.value_warmup_steps)")
        return super().prepare(made)

    @torch.no_grad()
    def _fitted(self, data: PreferenceData, round: Round) -> dict[str, Tensor]:
        """r - V(x) of every response, from a value head that saw the training split."""
        units = [*round.train.units, *round.val.units]
        prompts: dict[tuple[int, ...], int] = {}
        index = torch.tensor([prompts.setdefault(tuple(u.prompt), len(prompts)) for u in units])
        targets = torch.tensor([self.target(u) for u in units])
        first = {tuple(u.prompt): u for u in reversed(units)}
        states = self._prompt_states([first[p] for p in prompts], data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(data.seed)
            head = ValueHead(states.shape[1], dropout=0.0)
        n, rank = len(round.train), self.trainer.global_rank
        fit_value(
            head,
            states,
            index[:n],
            targets[:n],
            steps=self.value_warmup_steps,
            batch_size=data.pairs_per_step,
            lr=self.value_lr,
            seed=data.seed,
        )
        value = head(states)[index].to(self.device)
        advantage = targets - sum_over_ranks(value if rank == 0 else torch.zeros_like(value)).cpu()
        if rank == 0:
            explained = 1 - advantage[:n].var(correction=0) / targets[:n].var(correction=0).clamp(min=1e-12)
            kept = int((advantage[:n] > 0).sum())
            print(f"V explains {explained:.1%} of the reward; {kept} of {n} responses have a positive advantage")
        return {"train": advantage[:n], "val": advantage[n:]}

    def target(self, unit: Unit) -> float:
        """r = label + R of a unit's response."""
        (response,) = unit.example.responses
        label = 1.0 if response.desirable else self.undesirable_reward
        return label + sum(w * response.rewards[name] for name, w in self.reward_weights.items())

    def _prompt_states(self, units: Sequence[Unit], data: PreferenceData) -> Float[Tensor, "B D"]:
        """The policy's last hidden state at the end of each prompt, on every rank; ranks share the work."""
        short = [Group(u.prompt, (u.responses[0][:1],)) for u in units]  # nothing is read behind the prompt
        ranks = Ranks(self.trainer.global_rank, self.trainer.world_size)
        budget = {"layout": data.layout, "max_tokens": data.tokens_per_microbatch, "device": self.device}
        return score(self.policy, short, ("prompt_hidden",), ranks=ranks, title="states of prompts", **budget)[
            "prompt_hidden"
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["advantages"] = self.advantages

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.advantages = checkpoint["advantages"]


def _positive(split: Split, advantage: Float[Tensor, "units"]) -> Split:
    """The units of positive advantage, which is the column `ADVANTAGE`."""
    if len(advantage) != len(split):
        raise UserError(
            f"the checkpoint knows the advantages of {len(advantage)} responses, the data has {len(split)}; "
            "resume with the data that the run began with"
        )
    return split.with_column(ADVANTAGE, advantage).where(advantage > 0)
