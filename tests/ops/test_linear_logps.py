"""The chunked head against plain mathematics: values of tokens, in value and in gradient."""

import pytest
import torch
from heads import inputs, largest_tensor, leaves

from upo.ops.linear_head import ELEMENTS, LinearHead
from upo.ops.linear_logps import NAMES, eager_linear_values, linear_logps, linear_values

FORMS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"bias": True, "scale": 0.3},
    "capped": {"cap": 2.0},
    "LoRA": {"rank": 2},
    "all": {"bias": True, "rank": 2, "scale": 3.0, "cap": 4.0},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [1, 7, 22, 23, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 4e-6)])
def test_equals_its_twin_in_value_and_gradient(form, chunk, dtype, tolerance):
    hidden, head, targets = inputs(dtype=dtype, **FORMS[form])
    upstream = torch.linspace(-2, 3, len(targets), dtype=dtype)  # unequal, of both signs, one is nearly 0
    ours, plain = linear_values(hidden, head, targets, NAMES, chunk), eager_linear_values(hidden, head, targets)
    for name in NAMES:
        torch.testing.assert_close(ours[name], plain[name], atol=tolerance, rtol=0)
        for x, y in zip(
            torch.autograd.grad(ours[name], leaves(hidden, head), upstream, retain_graph=True),
            torch.autograd.grad(plain[name], leaves(hidden, head), upstream, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(x, y, atol=30 * tolerance, rtol=30 * tolerance)


@pytest.mark.parametrize("kept", [0, 100, 10**6])
@pytest.mark.parametrize("form", FORMS)
def test_kept_probabilities_change_nothing(form, kept, monkeypatch):
    """None, those of some chunks, all of them; also where a graph is gone through twice."""
    monkeypatch.setattr("upo.ops.linear_logps.KEPT", kept)
    hidden, head, targets = inputs(**FORMS[form])
    names, inputs_ = ("token_logps", "top_logp", "sum_p2"), leaves(hidden, head)
    ours, plain = (
        sum((x[name] * (i + 1)).sum() for i, name in enumerate(names))
        for x in (linear_values(hidden, head, targets, names, 7), eager_linear_values(hidden, head, targets))
    )
    expected = torch.autograd.grad(plain, inputs_)
    for again in (True, False):
        for x, y in zip(torch.autograd.grad(ours, inputs_, retain_graph=again), expected, strict=True):
            torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_what_the_formula_says(form):
    """cap tanh(scale (h W' + h A' B' + b) / cap), written out for one token and one entry of the vocabulary."""
    hidden, head, _ = inputs(**FORMS[form])
    x = (hidden[3] * head.weight[5]).sum()
    x = x if head.bias is None else x + head.bias[5]
    x = x if head.up is None else x + (head.up[5] * (head.down @ hidden[3])).sum()
    x = head.scale * x
    x = x if head.cap is None else head.cap * torch.tanh(x / head.cap)
    torch.testing.assert_close(head.logits(hidden)[3, 5], x)


def test_by_hand():
    """p = (1/2, 1/4, 1/4): entropy 1.5 log 2, sum of squares 3/8."""
    hidden, weight = torch.ones(1, 1), torch.tensor([[2.0], [1.0], [1.0]]).log()
    out = linear_values(hidden, LinearHead(weight), torch.tensor([2]), NAMES)
    assert {n: round(x.item(), 6) for n, x in out.items()} == {
        "token_logps": -1.386294, "entropy": 1.039721, "top_logp": -0.693147, "sum_p2": 0.375,
    }  # fmt: skip


@pytest.mark.parametrize("chunk", [2, None])
@pytest.mark.parametrize("names", [NAMES, *((n,) for n in NAMES)])
def test_gradcheck(names, chunk):
    hidden, head, targets = inputs(tokens=5, vocabulary=6, **FORMS["all"])

    def values(h, *tensors):
        return tuple(linear_values(h, head.holding(*tensors), targets, names, chunk).values())

    assert torch.autograd.gradcheck(values, (hidden, *head.tensors))


@pytest.mark.parametrize("needed", range(5))
def test_gives_only_the_gradients_that_are_asked_for(needed):
    hidden, head, targets = inputs(**FORMS["all"])
    expected = torch.autograd.grad(
        eager_linear_values(hidden, head, targets)["token_logps"].sum(), leaves(hidden, head)
    )[needed]
    tensors = [x if i == needed else x.detach() for i, x in enumerate((hidden, *head.tensors))]
    logps = linear_logps(tensors[0], head.holding(*tensors[1:]), targets, 4)
    torch.testing.assert_close(torch.autograd.grad(logps.sum(), tensors[needed])[0], expected)


def test_values_without_a_gradient_cost_none():
    """Weights that nobody differentiates: the gradient is that of the log-probs alone."""
    hidden, head, targets = inputs()
    out = linear_values(hidden, head, targets, ("sum_p2", "token_logps"), 4)
    alone = linear_logps(hidden, head, targets, 4)
    expected = torch.autograd.grad((alone * out["sum_p2"].detach()).sum(), leaves(hidden, head))
    got = torch.autograd.grad((out["token_logps"] * out["sum_p2"].detach()).sum(), leaves(hidden, head))
    for x, y in zip(got, expected, strict=True):
        assert torch.equal(x, y)


def test_tied_weight_collects_the_gradients_of_both_ends():
    """The embedding looks tokens up and is the head as well."""
    _, head, targets = inputs()
    weight, ids = head.weight, targets.roll(1)
    plain = torch.autograd.grad(eager_linear_values(weight[ids].tanh(), head, targets)["token_logps"].sum(), weight)[0]
    for chunk in (3, None):
        ours = torch.autograd.grad(linear_logps(weight[ids].tanh(), head, targets, chunk).sum(), weight)[0]
        torch.testing.assert_close(ours, plain)


def test_bf16_is_as_near_to_the_truth_as_its_twin_and_log_probs_are_fp32():
    hidden, head, targets = inputs(tokens=600, width=64, vocabulary=500, dtype=torch.bfloat16, bias=True)
    exact = eager_linear_values(hidden.double(), head.to(torch.float64), targets)
    ours, plain = linear_values(hidden, head, targets, NAMES, 7), eager_linear_values(hidden, head, targets)
    for name in NAMES:
        assert ours[name].dtype == torch.float32
        assert (ours[name] - exact[name]).abs().max() <= (plain[name] - exact[name]).abs().max() + 1e-5
    assert (ours["token_logps"] - exact["token_logps"]).abs().max() < 0.01 * exact["token_logps"].abs().max()


def test_bf16_gradients_do_not_lose_what_comes_late():
    """600 chunks that all push one way: a sum in bf16 would stand still once it is 256 times an addend."""
    hidden, head, _ = inputs(tokens=600, width=8, vocabulary=50, dtype=torch.bfloat16)
    hidden, targets = hidden.detach().abs(), torch.zeros(600, dtype=torch.long)
    wide = eager_linear_values(hidden.double(), head.to(torch.float64), targets)["token_logps"]
    exact = torch.autograd.grad(wide.sum(), head.weight)[0].float()
    got = torch.autograd.grad(linear_logps(hidden, head, targets, 1).sum(), head.weight)[0]
    assert got.dtype == torch.bfloat16
    assert (got.float() - exact).norm() / exact.norm() < 0.01


def test_log_probs_of_certain_and_of_impossible_tokens_are_finite():
    hidden = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    head = LinearHead(torch.eye(2, requires_grad=True))
    out = linear_values(hidden, head, torch.tensor([0, 0]), NAMES)
    assert out["token_logps"].tolist() == [0.0, -1e4]
    assert out["entropy"].tolist() == [0.0, 0.0] and out["sum_p2"].tolist() == [1.0, 1.0]
    for gradient in torch.autograd.grad(sum(x.sum() for x in out.values()), (hidden, head.weight)):
        assert gradient.isfinite().all()


def test_a_token_that_the_bias_forbids():
    """log 0 times 0 is no NaN."""
    hidden, head, targets = inputs(vocabulary=6, bias=True)
    bias = head.bias.detach().index_fill(0, torch.tensor([5]), -torch.inf)
    out = linear_values(hidden, head.holding(head.weight, bias, None, None), targets % 5, NAMES)
    fewer = linear_values(hidden, LinearHead(head.weight[:5], bias[:5]), targets % 5, NAMES)
    for name in NAMES:
        torch.testing.assert_close(out[name], fewer[name])
    assert torch.autograd.grad(out["entropy"].sum(), hidden)[0].isfinite().all()


def test_no_token_at_all():
    hidden, head, targets = inputs(tokens=0, bias=True)
    out = linear_values(hidden, head, targets, NAMES)
    assert {x.shape for x in out.values()} == {(0,)}
    assert torch.autograd.grad(sum(x.sum() for x in out.values()), head.weight)[0].abs().sum() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_memory_does_not_grow_with_tokens_times_vocabulary(form, tied):
    """The largest tensor of forward and backward is a chunk or the weight's gradient, for few and for many tokens."""
    sizes = {}
    for tokens in (64, 512):
        hidden, head, targets = inputs(tokens=tokens, width=4, vocabulary=3000, dtype=torch.float32, **FORMS[form])
        states = head.weight[targets] if tied else hidden

        def work(states=states, head=head, targets=targets, hidden=hidden):
            out = linear_values(states, head, targets, NAMES, 8)
            torch.autograd.grad(sum(x.sum() for x in out.values()), leaves(hidden, head), allow_unused=True)

        sizes[tokens] = largest_tensor(work)
    assert sizes[64] == sizes[512] == 8 * 3000


@pytest.mark.parametrize(("vocabulary", "rows"), [(100, 1024), (16_384, 1024), (152_064, 110), (10**9, 1)])
def test_a_chunk_holds_no_more_than_its_share(vocabulary, rows):
    head = LinearHead(torch.empty(vocabulary, 1, device="meta"))
    assert next(iter(head.chunks(5000, None))) == slice(0, rows)
    assert rows * vocabulary <= max(ELEMENTS, vocabulary)
