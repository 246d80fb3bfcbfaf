"""FlexAttention's rows: padding behind them changes nothing, and few graphs are compiled for all batches."""

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch
from tiny import arrange, units
from torch.nn.attention import flex_attention as library

from upo.data.layout import Responses
from upo.errors import UserError
from upo.models.logps import AXIS
from upo.ops import flex_attention
from upo.ops.flex_attention import BLOCK, LEAST, blocks, one_row
from upo.ops.prefix_attention import segments

WORK = units([(5, (3, 1)), (1, (4,)), (30, (2, 2, 6)), (3, (1,)), (40, (9, 9))])  # two rows of 64, one with padding
LONG = units([(100, (30, 60)), (90, (20, 33))])


@pytest.mark.parametrize(("work", "length"), [(WORK, 256), (LONG, 384)])
def test_one_row(work: list, length: int) -> None:
    """All flat positions stay; what is behind them is padding."""
    packed = arrange(work)
    made, size = one_row(packed), packed.input_ids.numel()
    assert made.input_ids.shape == (1, length) and length % BLOCK == 0 and length >= LEAST
    for name in ("input_ids", "position_ids", "prompt_segment_ids", "response_segment_ids"):
        assert torch.equal(getattr(made, name)[0, :size], getattr(packed, name).flatten())
    assert (made.prompt_segment_ids[0, size:] == -1).all() and (made.response_segment_ids[0, size:] == -1).all()
    assert made.logit_positions is packed.logit_positions and one_row(made).input_ids.shape == (1, length)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_padding_behind_a_row_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a quantity that losses read nor a gradient: as GPUs would have the batch, on the CPU."""
    policy, packed = tiny.policy(kind), arrange(WORK)
    names = set(AXIS) & policy.provides - {"logps", "kl", "reverse_kl"}
    plain = policy(packed, names)
    gradients = torch.autograd.grad(plain["logps"].sum(), list(policy.parameters()), allow_unused=True)
    seen: list[int] = []

    def lengthened(responses: Responses) -> Responses:
        made = one_row(responses)
        seen.append(made.input_ids.numel())
        return made

    monkeypatch.setattr(flex_attention, "arranged", lengthened)
    longer = policy(packed, names)
    assert seen == [256] and len(names) == 8
    for name, x in plain.items():
        torch.testing.assert_close(longer[name], x, rtol=1e-5, atol=1e-5, msg=name)
    again = torch.autograd.grad(longer["logps"].sum(), list(policy.parameters()), allow_unused=True)
    for a, b in zip(gradients, again, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_blocks_of_one_row_equal_segments_of_several() -> None:
    packed = arrange(WORK)
    made = one_row(packed)
    torch.manual_seed(0)
    q, k, v = (torch.randn(*packed.input_ids.shape, heads, 16) for heads in (4, 2, 2))
    expected = segments(packed).attend(*(x.transpose(1, 2) for x in (q, k, v)), 0.3).flatten(0, 1)
    flat = [torch.zeros(1, made.input_ids.numel(), *x.shape[2:]) for x in (q, k, v)]
    for long, x in zip(flat, (q, k, v), strict=True):
        long[0, : len(expected)] = x.flatten(0, 1)
    got = blocks(made, is_compiled=False).attend(*(x.transpose(1, 2) for x in flat), 0.3)[0, : len(expected)]
    real = (packed.prompt_segment_ids >= 0).flatten()[:, None, None]
    torch.testing.assert_close(got * real, expected * real, rtol=1e-5, atol=1e-6)


# ---- graphs --------------------------------------------------------------------------------------------------------


class Counter:
    """A backend of torch.compile that runs a graph as it is, and counts it."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """What `compiled` compiles with, in place of a GPU's compiler."""
    counter = Counter()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    monkeypatch.setattr(flex_attention, "compiled", functools.cache(flex_attention.compiled.__wrapped__))
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)  # it refuses gradients on CPUs; none are computed
    yield counter
    torch._dynamo.reset()


def attend(responses: Responses, mode: Any, heads: int = 1) -> None:
    """A layer's attention while training, of the reference, or while validating."""
    plan, (rows, width) = blocks(responses), responses.input_ids.shape
    with mode():
        needs = mode is torch.enable_grad
        query, key, value = (torch.randn(rows, heads, width, 8, requires_grad=needs) for _ in range(3))
        plan.attend(query, key, value, 0.3)


MODES = (torch.enable_grad, torch.no_grad, torch.inference_mode)


@pytest.mark.slow
def test_four_graphs_do_for_200_batches(counter: Counter) -> None:
    """One makes masks; attention has one for training, reference and validation each."""
    draw, lengths = random.Random(0), set()
    for _ in range(200):
        sizes = [(draw.randint(1, 60), [draw.randint(1, 30)] * draw.randint(1, 4)) for _ in range(draw.randint(1, 6))]
        responses = one_row(arrange(units(sizes)))
        lengths.add(responses.input_ids.numel())
        attend(responses, draw.choice(MODES))
    assert counter.graphs <= 4 and len(lengths) > 3


def test_too_many_graphs_are_an_error(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never attention with all its scores; the limit is that of these functions alone."""
    monkeypatch.setattr(flex_attention, "KINDS", 2)
    limit = torch._dynamo.config.recompile_limit
    responses = one_row(arrange(WORK))
    for heads in (1, 2):
        attend(responses, torch.no_grad, heads)
    with pytest.raises(UserError, match="compiled for 2 kinds of batches and models already"):
        attend(responses, torch.no_grad, 3)
    assert torch._dynamo.config.recompile_limit == limit and not torch._dynamo.config.fail_on_recompile_limit_hit
