"""What holds for every method: its class comes to what its formula says, written out by hand one response at a time.

Total loss, gradients of policy and heads, implicit rewards and every logged metric of two training steps and of a
validation of both, against references (`tests/by_hand`) that know no batches, no layouts and none of the method's own
functions. The class gets uneven micro-batches, packed and padded, a filler, and options away from their defaults.
A new method is tested here as soon as `upo.methods.__all__` names it, and fails until it has a reference.

Everything is in float64: the model has no part that rounds (GPT-2), and `Tensor.float` is `Tensor.double`.
"""

import copy
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from by_hand import (  # noqa: F401  each names the references of its methods
    coupled,
    imitation,
    lists,
    pairs,
    pairs_alone,
    pairs_annotated,
    tokens,
    unified,
    values,
)
from by_hand.answers import PlainStep, Reader
from by_hand.case import CASES, Case, Expected
from by_hand.unified import DATA_SEED
from torch import Tensor

import upo.methods
from upo.data.batch import Step
from upo.data.samplers import StepPlan
from upo.data.steps import StepData
from upo.logps import ResponseLogps
from upo.methods.base import Method
from upo.policy import Policy
from upo.reference import FrozenReference

PLANS = (
    (StepPlan([3, 0, 5, 1, 4, 2], [[5], [0, 3, 4], [1, 2], [3]], fillers=1), "packed"),
    (StepPlan([7, 6, 8], [[6, 8], [7]], fillers=0), "padded"),
)
"""Of the nine units: one, three and two beside a filler, then two and one."""
HELD_OUT = (StepPlan([3, 0, 5, 1, 4, 2], [[3, 0, 5, 4], [1, 2]], 0), StepPlan([7, 6, 8], [[7, 6, 8]], 0))
"""The same steps in fewer pieces."""
FIRST = 5
"""Optimizer steps before the first one here: UPO still warms up in it, and no longer in the second."""
WORLD_SIZE = 2
"""By which strategies divide gradients."""
ELSEWHERE = {
    *("policy", "reference", "optimizer", "scheduler"),
    *("value_lr", "value_grad_clip", "head_lr", "mask_lr", "mask_weight_decay"),
}
"""Arguments that no loss reads: how parameters are updated."""
SET_BY_THE_CLASS = {"GuidedDPO": {"alpha"}}
"""Arguments of a parent that the class gives itself."""


@pytest.fixture(scope="module")
def models() -> SimpleNamespace:
    """Policy and reference, which differ, and who reads them."""
    policy, reference = (tiny.policy("gpt2", dtype="float64", seed=seed) for seed in (0, 0))
    generator = torch.Generator().manual_seed(21)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    reference.requires_grad_(False)
    return SimpleNamespace(policy=policy, reference=reference, reader=Reader(policy.model, reference.model))


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is rounded to float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Known(FrozenReference):
    """A reference that is there already."""

    def __init__(self, model: Policy):
        super().__init__("elsewhere")
        self.model = model

    def build(self, policy: Policy) -> None:
        """Nothing to do."""


class Driven:
    """A method with its data, taken through its steps as a Trainer would."""

    def __init__(self, case: Case, models: SimpleNamespace):
        reference = Known(models.reference) if case.kind.needs_reference else None
        self.method: Any = case.kind(copy.copy(models.policy), reference, **case.options)
        self.data = StepData(
            case.units(), case.kind.batch_type, layout="packed", tokens_per_microbatch=24, max_length=64, pad_id=0,
            rewards=self.method.rewards, seed=0,
        )  # fmt: skip
        splits = {"train": self.data, "val": copy.copy(self.data)}
        self.method.trainer = SimpleNamespace(
            world_size=WORLD_SIZE, global_step=FIRST, datamodule=SimpleNamespace(**splits)
        )
        torch.manual_seed(2)
        self.method.configure_model()
        self.method.double()
        with torch.no_grad():
            for name, parameter in self.method.named_parameters():
                if not name.startswith("policy."):
                    parameter += 0.15 * torch.randn_like(parameter)
        case.prepare(self.method, self.data)
        self.method.on_fit_start()
        self.method.data_seed = DATA_SEED
        self.logged: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []
        self.rewards: list[Tensor] = []
        self.method.log = lambda name, x, **_: self.logged.update({name: x})
        self.method.optimizers = lambda use_pl_optimizer: self.method  # for its zero_grad
        self.loss_of, self.method.loss_of = self.method.loss_of, self.keep
        self.track, self.method.track = self.method.track, self.keep_rewards

    def keep(self, *args: Any) -> Tensor:
        self.losses.append(self.loss_of(*args))
        return self.losses[-1]

    def keep_rewards(self, stage: str, batch: Any, logps: ResponseLogps) -> None:
        """Of a micro-batch's responses."""
        self.track(stage, batch, logps)
        if type(self.method).reward is not Method.reward:
            self.rewards.append(self.method.reward(logps))

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


def missing(kind: type[Method]) -> str:
    return (
        f"{kind.__name__} has no reference by hand. Write one in tests/by_hand: a function of a PlainStep and the "
        f"method's options, `@case({kind.__name__}, pairs, beta=0.3)` above it, which follows the paper's equation one "
        "response at a time and returns `expected(...)` or `of_pairs(...)`: loss, reward and metrics. See case.py"
    )


def every_case() -> Iterator[Any]:
    for name in sorted(upo.methods.__all__):
        kind = getattr(upo.methods, name)
        for i, case in enumerate(CASES[kind] or [None]):
            yield pytest.param(kind, case, id=name if i == 0 else f"{name}-{i + 1}")


def close(found: Any, wanted: Any, what: str) -> None:
    found, wanted = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (found, wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10, msg=lambda text: f"{what}: {text}")


@pytest.mark.filterwarnings("ignore:an advantage weight reached")
@pytest.mark.parametrize(("kind", "case"), every_case())
def test_a_class_comes_to_what_its_formula_says(kind: type[Method], case: Case | None, models: SimpleNamespace) -> None:
    assert case is not None, missing(kind)
    driven, by_hand = Driven(case, models), []
    seen: dict[str, set[bool]] = {}
    for number, (plan, layout) in enumerate(PLANS, FIRST):
        units = [models.reader.unit(driven.data, i) for i in plan.units]
        by_hand.append(PlainStep(units, number, True, driven.method, [*by_hand], seen))
        by_hand[-1].so_far.append(by_hand[-1])
        wanted = case.expected(by_hand[-1])
        gradients = driven.train(driven.step(plan, layout), number)
        close(sum(driven.losses), wanted.loss, "loss")
        assert all(loss == 0 for loss in driven.losses[len(plan.micro_batches) - plan.fillers :]), "a filler counts"
        compare_gradients(driven.method, gradients, wanted, models)
        compare_logs(driven.logged, [wanted], "train")
    validation = [
        case.expected(PlainStep(step.units, FIRST + len(PLANS), False, driven.method, by_hand, seen))
        for step in by_hand
    ]
    driven.validate([driven.step(plan, "packed") for plan in HELD_OUT])
    compare_logs(driven.logged, validation, "val")
    compare_rewards(driven, validation[0], case, models)
    assert all(len(sides) == 2 for sides in seen.values()), f"the data meets one side only: {seen}"


def compare_gradients(method: Method, found: dict[str, Tensor], wanted: Expected, models: SimpleNamespace) -> None:
    """Of all parameters of the policy and of the heads; by hand the policy's are those of the plain model."""
    plain = {f"policy.model.{n}": p for n, p in models.reader.policy.model.named_parameters()}
    heads = {n: p for n, p in method.named_parameters() if not n.startswith("policy.")}
    every = plain | heads
    gradients = torch.autograd.grad(wanted.loss, list(every.values()), retain_graph=True, allow_unused=True)
    assert found.keys() <= every.keys()
    for (name, parameter), gradient in zip(every.items(), gradients, strict=True):
        none = torch.zeros_like(parameter)
        close(found.get(name, none), none if gradient is None else gradient, f"gradient of {name}")
    assert any(x.abs().max() > 1e-4 for x in found.values())


def compare_logs(found: dict[str, Tensor], wanted: list[Expected], stage: str) -> None:
    """Metrics of one or more steps, all of them and no others."""
    pooled: dict[str, list] = {}
    for expected in wanted:
        for name, every in expected.values.items():
            pooled.setdefault(name, []).extend(every)
    metrics = {f"{stage}/{name}": x for name, x in wanted[0].summary(pooled).items()}
    assert found.keys() == metrics.keys()
    for name, x in metrics.items():
        close(found[name], x, name)


def compare_rewards(driven: Driven, wanted: Expected, case: Case, models: SimpleNamespace) -> None:
    """The implicit reward of each response, in the order of the micro-batches."""
    micro_batches = [rows for plan in HELD_OUT for rows in plan.micro_batches]
    assert len(driven.rewards) == (len(micro_batches) if wanted.reward else 0)
    for rows, found in zip(micro_batches, driven.rewards, strict=False):
        answers = [y for i in rows for y in case.rows(models.reader.unit(driven.data, i))]
        close(found, torch.stack([wanted.reward(y) for y in answers]), "reward")


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__) for kind in CASES])
def test_every_argument_is_away_from_its_default_in_a_case(kind: type[Method]) -> None:
    """One that stays where it is could be ignored by the class, and nobody would notice."""
    defaults: dict[str, Any] = {}
    for base in kind.__mro__[: kind.__mro__.index(Method)]:
        if "__init__" in vars(base):
            named = list(inspect.signature(base.__init__).parameters.values())[1:]
            defaults = {x.name: x.default for x in named if x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)} | defaults
    tried = {name for case in CASES[kind] for name, x in case.options.items() if x != defaults[name]}
    assert defaults.keys() - tried - ELSEWHERE == SET_BY_THE_CLASS.get(kind.__name__, set())
