"""A method's class with data of its own, taken through two training steps and a validation as a Trainer would."""

import copy
from types import SimpleNamespace
from typing import Any

import torch
from by_hand.case import ByHand
from tiny import split_of
from torch import Tensor

from upo.data.batch import Step
from upo.data.partners import derangement
from upo.data.rounds import Round
from upo.data.samplers import StepPlan
from upo.data.steps import StepData
from upo.data.units import Unit
from upo.methods.common.base import Method
from upo.models.logps import ResponseLogps
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

PLANS = (
    (StepPlan([3, 0, 5, 1, 4, 2], [[5], [0, 3, 4], [1, 2], [3]], dummies=1), "packed"),
    (StepPlan([7, 6, 8], [[6, 8], [7]], dummies=0), "padded"),
)
"""Of the nine units: one, three and two beside a dummy, then two and one."""
HELD_OUT = (StepPlan([3, 0, 5, 1, 4, 2], [[3, 0, 5, 4], [1, 2]], 0), StepPlan([7, 6, 8], [[7, 6, 8]], 0))
"""The same steps in fewer pieces."""
FIRST = 5
"""Optimizer steps before the first one here: UPO still warms up in it, and no longer in the second."""
WORLD_SIZE = 2
"""By which strategies divide gradients."""
DATA_SEED = 11
"""The run's seed, which dropout is drawn from."""


class Known(FrozenReference):
    """A reference that is there already."""

    def __init__(self, model: Policy):
        super().__init__("elsewhere")
        self.model = model

    def build(self, policy: Policy) -> None:
        """Nothing to do."""


class Driven:
    """A method with its data, taken through its steps as a Trainer would."""

    def __init__(self, case: ByHand, models: SimpleNamespace):
        reference = Known(models.reference) if case.kind.needs.reference is not None else None
        policy = copy.copy(models.policy)
        policy.controls = case.kind.needs.control_tokens  # as if they had come before its tokenizer was read
        self.method: Any = case.kind(policy, reference, **case.options)
        self.units = list(case.units())
        plain = SimpleNamespace(pre_backward=lambda loss, _: loss)
        self.method.trainer = SimpleNamespace(
            world_size=WORLD_SIZE, global_step=FIRST, datamodule=None, precision_plugin=plain
        )
        torch.manual_seed(2)
        self.method.configure_model()
        self.method.double()
        with torch.no_grad():
            for name, parameter in self.method.named_parameters():
                if not name.startswith("policy."):
                    parameter += 0.15 * torch.randn_like(parameter)
        case.prepare(self.method, self.units)
        view, rewards = self.method.view, self.method.rewards
        keys = [view.partner_key(unit.example) for unit in self.units]
        self.partners = derangement(keys, 0) if view.pairs_up else None
        split = split_of(self.units, view, rewards=rewards)
        split = self.method.prepare(Round(split, split)).train
        self.data = StepData(split, layout="packed", tokens_per_microbatch=24, pad_id=0, rewards=rewards)
        self.method.data_seed = DATA_SEED
        self.logged: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []
        self.rewards: list[Tensor] = []
        self.method.log = lambda name, x, **_: self.logged.update({name: x})
        self.method.optimizers = lambda use_pl_optimizer: self.method  # for its zero_grad
        self.loss_of, self.method.loss_of = self.method.loss_of, self.keep
        self.update_metrics, self.method.update_metrics = self.method.update_metrics, self.keep_rewards

    def keep(self, *args: Any) -> Tensor:
        self.losses.append(self.loss_of(*args))
        return self.losses[-1]

    def keep_rewards(self, stage: str, batch: Any, logps: ResponseLogps) -> None:
        """Of a micro-batch's responses."""
        self.update_metrics(stage, batch, logps)
        if type(self.method).reward is not Method.reward:
            self.rewards.append(self.method.reward(logps))

    def partner(self, index: int) -> Unit | None:
        """Of a unit, before the two were joined."""
        return None if self.partners is None else self.units[self.partners[index]]

    def step(self, plan: StepPlan, layout: Any) -> Step:
        self.data.layout = layout
        step = self.data[plan]
        return step._map(lambda x: x.double() if x.is_floating_point() else x)

    def train(self, step: Step, number: int) -> dict[str, Tensor]:
        """Gradients by parameter."""
        self.method.train()
        self.method.trainer.global_step = number
        self.losses.clear()
        self.logged.clear()
        self.method.training_step(step, 0).backward()
        return {n: p.grad / WORLD_SIZE for n, p in self.method.named_parameters() if p.grad is not None}

    @torch.inference_mode()
    def validate(self, steps: list[Step]) -> None:
        self.method.eval()
        self.method.trainer.global_step += 1
        self.logged.clear()
        self.rewards.clear()
        for i, step in enumerate(steps):
            self.method.validation_step(step, i)
        self.method.on_validation_epoch_end()
