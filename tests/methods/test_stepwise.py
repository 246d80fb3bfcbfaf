"""Losses over a whole step: equal to one batch on one rank, however the step is cut; rows gathered from ranks."""

import socket
from typing import Any

import pytest
import torch
from attrs import evolve
from conftest import _server
from losses import draws
from tiny import data_of, plain_logps, units

from upo.data.batch import Step
from upo.data.samplers import StepSampler
from upo.data.views import PairedView
from upo.methods.aot import AOTPaired, AOTUnpaired
from upo.methods.common.stepwise import step_logps
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.runtime.collectives import gather_rows

CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2}
WORK = units([(3, [9, 2]), (5, [1, 3]), (2, [4, 4]), (7, [2, 6]), (4, [6, 3])])
LABELS = [True, False, True, True, True, False, True, False, True, True]
"""Seven desirable ones against three."""


def method(kind: type, **options):
    """A policy that differs from its reference."""
    made = kind(Policy(config=CONFIG, tokenizer="tiny.tokenizer", dtype="float64"), FrozenReference(), **options)
    torch.manual_seed(0)
    made.configure_model()
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def paired() -> AOTPaired:
    return method(AOTPaired, beta=0.3)


@pytest.fixture(scope="module")
def unpaired() -> AOTUnpaired:
    return method(AOTUnpaired, beta=0.3)


def labelled() -> list:
    work, labels = [], iter(LABELS)
    for unit in WORK:
        responses = tuple(evolve(r, desirable=next(labels)) for r in unit.example.responses)
        work.append(evolve(unit, example=unit.example.with_responses(responses)))
    return work


def step(kind: Any, budget: int, rank: int = 0, world_size: int = 1, layout: str = "packed") -> Step:
    data = data_of(
        WORK if kind == PairedView() else labelled(), kind, layout=layout, tokens_per_microbatch=budget, max_length=64,
        pad_id=0, rewards=(), seed=3,
    )  # fmt: skip
    (plan,) = StepSampler(
        [data.cost(i) for i in range(len(data))], units_per_step=len(data), tokens_per_microbatch=budget,
        shuffle=False, seed=0, rank=rank, world_size=world_size,
    )  # fmt: skip
    return data[plan]


def slow_ratios(made) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Policy's and reference's sums, one sequence at a time through Hugging Face, in the order of WORK."""
    found = []
    for unit in WORK:
        for response in unit.responses:
            with torch.no_grad():
                reference = plain_logps(made.reference.model, unit.prompt, response).sum()
            found.append((plain_logps(made.policy, unit.prompt, response).sum(), reference))
    return found


def slow_paired(made) -> torch.Tensor:
    """Couples looked up one by one: the k-th smallest margin of the policy meets the reference's k-th smallest."""
    rows = slow_ratios(made)
    ours = [w[0] - r[0] for w, r in zip(rows[0::2], rows[1::2], strict=True)]
    theirs = sorted((w[1] - r[1]).item() for w, r in zip(rows[0::2], rows[1::2], strict=True))
    total = 0.0
    for u in ours:
        rank = sum(bool(other < u) for other in ours)
        total = total + torch.log1p(torch.exp(-made.beta * (u - theirs[rank])))
    return total / len(ours)


def slow_unpaired(made) -> torch.Tensor:
    """Every desirable ratio copied 3 times and every undesirable one 7 times, so that equal ranks can meet."""
    rows = [(a - b, label) for (a, b), label in zip(slow_ratios(made), LABELS, strict=True)]
    good = sorted([x for x, label in rows if label for _ in range(3)], key=torch.Tensor.item)
    bad = sorted([x for x, label in rows if not label for _ in range(7)], key=torch.Tensor.item)
    losses = [torch.log1p(torch.exp(-made.beta * (u - v))) for u, v in zip(good, bad, strict=True)]
    return torch.stack(losses).mean()


def run(made, whole: Step) -> tuple[float, list[torch.Tensor]]:
    """The loss and its gradient from the micro-batches of a step."""
    made.policy.zero_grad()
    statistics = made.statistics(whole)
    total = 0.0
    for batch in whole.micro_batches:
        loss = made.loss_of(batch, whole, statistics, "train")
        loss.backward()
        total += loss.item()
    made.compute_metrics("train")
    return total, [p.grad.clone() for p in made.policy.parameters()]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("budget", [1, 24, 10_000])
@pytest.mark.parametrize(("kind", "slow"), [("paired", slow_paired), ("unpaired", slow_unpaired)])
def test_loss_and_gradient_are_those_of_the_whole_step(kind, slow, budget, layout, request):
    made = request.getfixturevalue(kind)
    one = step(made.view, budget, layout=layout)
    if layout == "packed":
        assert len(one.micro_batches) == {1: 5, 24: 3, 10_000: 1}[budget]
    expected = slow(made)
    gradients = torch.autograd.grad(expected, list(made.policy.parameters()))
    loss, ours = run(made, one)
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    for a, b in zip(ours, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-7)
    assert any(g.abs().max() > 1e-3 for g in ours)


@pytest.mark.parametrize("place", [0, 2, -1])
@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_fillers_do_not_count_and_ask_no_reference(kind, place, request, monkeypatch):
    """Wherever a dummy stands among the micro-batches."""
    made = request.getfixturevalue(kind)
    ranks = [step(made.view, 1, rank, 2) for rank in range(2)]
    every = [b for r in ranks for b in r.micro_batches if not b.dummy]
    (dummy,) = (b for r in ranks for b in r.micro_batches if b.dummy)
    every.insert(place % (len(every) + 1), dummy)
    joined = Step(tuple(every), ranks[0].counts)
    expected, gradients = run(made, step(made.view, 10_000))
    statistics = made.statistics(joined)
    monkeypatch.setattr(made.reference, "logps", None)  # sharded ranks must run the same forwards, dummies or not
    made.policy.zero_grad()
    losses = [made.loss_of(b, joined, statistics, "train") for b in joined.micro_batches]
    sum(losses).backward()
    made.compute_metrics("train")
    assert sum(losses).item() == pytest.approx(expected, rel=1e-9)
    for p, gradient in zip(made.policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=2e-7)


def test_a_rank_with_fillers_alone_has_no_rows(paired):
    one = step(PairedView(), 10_000)
    rows = step_logps(paired, Step((evolve(one.micro_batches[0], dummy=True),), one.counts))
    assert rows.logps.shape == rows.lengths.shape == rows.logratio.shape == (0,)


def test_step_logps_are_those_of_the_micro_batches_in_order(paired):
    one = step(PairedView(), 24)
    rows = step_logps(paired, one)
    parts = [paired.response_logps(b.responses) for b in one.micro_batches]
    torch.testing.assert_close(rows.logratio, torch.cat([p.logratio for p in parts]).detach())
    assert not rows.logps.requires_grad
    assert rows.prompt_index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_validation_runs_in_inference_mode(paired):
    one = step(PairedView(), 24)
    expected, _ = run(paired, one)
    with torch.inference_mode():
        statistics = paired.statistics(one)
        loss = sum(paired.loss_of(b, one, statistics, "val") for b in one.micro_batches)
    paired.compute_metrics("val")
    assert loss.item() == pytest.approx(expected)


def _rank(rank: int, port: int, queue) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    mine = torch.arange(6.0).view(3, 2)[: (2, 0, 3)[rank]] + 10 * rank
    rows, own = gather_rows(mine)
    queue.put((rank, rows.tolist(), (own.start, own.stop)))
    dist.barrier()
    dist.destroy_process_group()


def test_rows_of_three_ranks_of_which_one_has_none():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    queue = _server.Queue()
    ranks = [_server.Process(target=_rank, args=(rank, port, queue)) for rank in range(3)]
    for process in ranks:
        process.start()
    found = sorted(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(20)
    expected = [[0.0, 1.0], [2.0, 3.0], [20.0, 21.0], [22.0, 23.0], [24.0, 25.0]]
    assert found == [(0, expected, (0, 2)), (1, expected, (2, 2)), (2, expected, (2, 5))]


def test_without_ranks_the_rows_are_ones_own():
    rows, own = gather_rows(draws(4, 3))
    assert rows.shape == (4, 3) and own == slice(0, 4)
