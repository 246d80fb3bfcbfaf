"""What holds for every method: its class comes to what its formula says, written out by hand one response at a time.

Total loss, gradients of policy and heads, implicit rewards and every logged metric of two training steps and of a
validation of both, against references (`tests/by_hand`) that know no batches, no layouts and none of the method's own
functions. The class gets uneven micro-batches, packed and padded, a dummy, and options away from their defaults.
A new method is tested here as soon as `upo.methods.__all__` names it, and fails until it has a reference: in
`tests/by_hand` or among the tests of its own file (`tests/methods`).

Everything is in float64: the model has no part that rounds (GPT-2), and `Tensor.float` is `Tensor.double`.
"""

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
    pairs_shaped,
    tokens,
    unified,
    values,
)
from by_hand.answers import PlainStep, Reader
from by_hand.case import BY_HAND, ByHand, Expected
from by_hand.driven import FIRST, HELD_OUT, PLANS, Driven
from cases import case_of, own_tests
from torch import Tensor

import upo.methods
from upo.methods.common.base import Method

ELSEWHERE = {"policy", "reference", "optimizer", "scheduler", "value_lr", "value_grad_clip"}
"""Arguments that no loss reads: how parameters are updated."""
METHODS = {name: getattr(upo.methods, name) for name in sorted(upo.methods.__all__)}
for every in METHODS.values():
    own_tests(every)  # may name a reference too, when they are imported


@pytest.fixture(scope="module")
def models() -> SimpleNamespace:
    """Policy and reference, which differ, and who reads them."""
    policy = tiny.policy("gpt2", dtype="float64")
    reference, generator = policy.frozen_copy(), torch.Generator().manual_seed(21)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return SimpleNamespace(policy=policy, reference=reference, reader=Reader(policy.model, reference.model))


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is rounded to float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def missing(kind: type[Method]) -> str:
    return (
        f"{kind.__name__} has no reference by hand. Write one among its own tests (tests/methods): a function of a "
        f"PlainStep and the method's options, `@case({kind.__name__}, pairs, beta=0.3)` above it, which follows the "
        "paper's equation one response at a time and returns `expected(...)` or `of_pairs(...)`: loss, reward and "
        "metrics. See tests/by_hand/case.py"
    )


def every_case() -> Iterator[Any]:
    for name, kind in METHODS.items():
        for i, case in enumerate(BY_HAND.get(kind, [None])):
            yield pytest.param(kind, case, id=name if i == 0 else f"{name}-{i + 1}")


def close(found: Any, wanted: Any, what: str) -> None:
    found, wanted = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (found, wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10, msg=lambda text: f"{what}: {text}")


@pytest.mark.turns(3)
@pytest.mark.filterwarnings("ignore:an advantage weight reached")
@pytest.mark.parametrize(("kind", "case"), every_case())
def test_a_class_comes_to_what_its_formula_says(
    kind: type[Method], case: ByHand | None, models: SimpleNamespace
) -> None:
    assert case is not None, missing(kind)
    driven, by_hand = Driven(case, models), []
    seen: dict[str, set[bool]] = {}
    for number, (plan, layout) in enumerate(PLANS, FIRST):
        units = [models.reader.unit(driven.units[i], driven.partner(i)) for i in plan.units]
        by_hand.append(PlainStep(units, number, True, driven.method, [*by_hand], seen))
        by_hand[-1].so_far.append(by_hand[-1])
        wanted = case.expected(by_hand[-1])
        gradients = driven.train(driven.step(plan, layout), number)
        close(sum(driven.losses), wanted.loss, "loss")
        assert all(loss == 0 for loss in driven.losses[len(plan.micro_batches) - plan.dummies :]), "a dummy counts"
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


def compare_rewards(driven: Driven, wanted: Expected, case: ByHand, models: SimpleNamespace) -> None:
    """The implicit reward of each response, in the order of the micro-batches."""
    micro_batches = [rows for plan in HELD_OUT for rows in plan.micro_batches]
    assert len(driven.rewards) == (len(micro_batches) if wanted.reward else 0)
    for rows, found in zip(micro_batches, driven.rewards, strict=False):
        answers = [y for i in rows for y in case.rows(models.reader.unit(driven.units[i], driven.partner(i)))]
        close(found, torch.stack([wanted.reward(y) for y in answers]), "reward")


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__) for kind in BY_HAND])
def test_every_argument_is_away_from_its_default_in_a_case(kind: type[Method]) -> None:
    """One that stays where it is could be ignored by the class, and nobody would notice."""
    defaults: dict[str, Any] = {}
    for base in kind.__mro__[: kind.__mro__.index(Method)]:
        if "__init__" in vars(base):
            named = list(inspect.signature(base.__init__).parameters.values())[1:]
            defaults = {x.name: x.default for x in named if x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)} | defaults
    tried = {name for case in BY_HAND[kind] for name, x in case.options.items() if x != defaults[name]}
    assert defaults.keys() - tried - ELSEWHERE == set(case_of(kind).not_in_loss)
