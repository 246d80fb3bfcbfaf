"""KL over the vocabulary in chunks against plain mathematics."""

import pytest
import torch
from heads import inputs, largest_tensor, leaves

from upo.ops.linear_head import LinearHead
from upo.ops.linear_kl import eager_linear_kl, linear_kl

FORMS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.3},
    "capped": {"cap": 2.0},
    "LoRA": {"rank": 2},
    "all": {"bias": True, "rank": 2, "scale": 3.0, "cap": 4.0},
}


def both(form, **options):
    """Policy and reference, whose width and form differ."""
    hidden, head, _ = inputs(**FORMS[form], **options)
    options |= {"width": 3}
    reference_hidden, reference_head, _ = inputs(seed=1, bias=True, cap=5.0, **options)
    return hidden, head, reference_hidden, reference_head


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [1, 7, 23, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_equals_its_twin_in_value_and_gradient(form, chunk, dtype, tolerance, reverse):
    hidden, head, reference_hidden, reference_head = both(form, dtype=dtype)
    upstream = torch.linspace(-2, 3, len(hidden), dtype=dtype)
    ours = linear_kl(hidden, head, reference_hidden, reference_head, chunk, reverse)
    plain = eager_linear_kl(hidden, head, reference_hidden, reference_head, reverse)
    torch.testing.assert_close(ours, plain, atol=tolerance, rtol=tolerance)
    for x, y in zip(
        torch.autograd.grad(ours, leaves(hidden, head), upstream),
        torch.autograd.grad(plain, leaves(hidden, head), upstream),
        strict=True,
    ):
        torch.testing.assert_close(x, y, atol=30 * tolerance, rtol=30 * tolerance)


def test_by_hand_and_in_the_right_direction():
    """q = (1/2, 1/4, 1/4), p = (1/3, 1/3, 1/3): KL(q || p) = log 3 - 1.5 log 2; the other way it is 0.0566."""
    one, weight = torch.ones(1, 1), torch.tensor([[2.0], [1.0], [1.0]]).log()
    uniform = LinearHead(torch.zeros(3, 1))
    assert linear_kl(one, uniform, one, LinearHead(weight)).item() == pytest.approx(0.0588915)
    assert linear_kl(one, LinearHead(weight), one, uniform).item() == pytest.approx(0.0566330)
    assert linear_kl(one, uniform, one, LinearHead(weight), reverse=True).item() == pytest.approx(0.0566330)


@pytest.mark.parametrize("chunk", [2, None])
def test_gradcheck(chunk):
    hidden, head, *reference = both("all", tokens=5, vocabulary=6)
    assert torch.autograd.gradcheck(
        lambda h, *tensors: linear_kl(h, head.holding(*tensors), *reference, chunk), (hidden, *head.tensors)
    )


def test_the_reference_gets_no_gradient():
    hidden, head, reference_hidden, reference_head = both("all")
    linear_kl(hidden, head, reference_hidden, reference_head).sum().backward()
    assert all(x.grad is not None for x in leaves(hidden, head))
    assert all(x.grad is None for x in leaves(reference_hidden, reference_head))


def test_nothing_and_no_gradient_where_both_agree():
    hidden, head, _ = inputs(bias=True)
    kl = linear_kl(hidden, head, hidden, head, 4)
    assert kl.abs().max() < 1e-14
    for gradient in torch.autograd.grad(kl.sum(), leaves(hidden, head)):
        assert gradient.abs().max() < 1e-14


def test_never_negative_far_out_and_where_the_reference_forbids_a_token():
    hidden, head, reference_hidden, reference_head = both("all", dtype=torch.float32)
    far = linear_kl(1e3 * hidden, LinearHead(head.weight), reference_hidden, reference_head)
    assert (far >= 0).all() and far.isfinite().all() and far.max() > 100
    bias = torch.zeros(11).index_fill(0, torch.tensor([5]), -torch.inf)
    kl = linear_kl(hidden, head, reference_hidden, LinearHead(reference_head.weight, bias))
    assert kl.isfinite().all() and (kl > 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(kl.sum(), leaves(hidden, head)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [7, None])
def test_a_token_that_both_forbid_is_as_if_it_were_not_there(reverse, dtype, chunk):
    """Vocabulary padding: a bias of -inf for rows 5 and 10 of both; against models without these rows."""
    hidden, head, reference_hidden, reference_head = both("plain", dtype=dtype)
    kept = torch.ones(len(head.weight), dtype=torch.bool).index_fill(0, torch.tensor([5, 10]), False)
    forbid = torch.zeros(len(kept), dtype=dtype).masked_fill(~kept, -torch.inf)
    theirs = LinearHead(reference_head.weight, forbid)
    ours = linear_kl(hidden, LinearHead(head.weight, forbid), reference_hidden, theirs, chunk, reverse)
    small = LinearHead(head.weight[kept]), reference_hidden, LinearHead(reference_head.weight[kept])
    plain = eager_linear_kl(hidden, *small, reverse)
    torch.testing.assert_close(ours, plain)
    gradients = torch.autograd.grad(ours.sum(), (hidden, head.weight))
    for a, b in zip(gradients, torch.autograd.grad(plain.sum(), (hidden, head.weight)), strict=True):
        torch.testing.assert_close(a, b)
    assert not gradients[1][~kept].any()


def test_the_reverse_divergence_is_finite_where_the_policy_alone_forbids_a_token():
    hidden, head, *reference = both("plain", dtype=torch.float32)
    bias = torch.zeros(11).index_fill(0, torch.tensor([5]), -torch.inf)
    kl = linear_kl(hidden, LinearHead(head.weight, bias), *reference, None, True)
    assert kl.isfinite().all() and (kl > 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(kl.sum(), (hidden, head.weight)))


def test_bf16_is_near_the_truth_and_fp32():
    hidden, head, reference_hidden, reference_head = both("bias", tokens=60, vocabulary=90, dtype=torch.bfloat16)
    wide = torch.float64
    exact = eager_linear_kl(hidden.double(), head.to(wide), reference_hidden.double(), reference_head.to(wide))
    kl = linear_kl(hidden, head, reference_hidden, reference_head, 7)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl.double(), exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_memory_does_not_grow_with_tokens_times_vocabulary(form, tied):
    sizes = {}
    for tokens in (64, 512):
        hidden, head, *reference = both(form, tokens=tokens, vocabulary=3000, dtype=torch.float32)
        states = head.weight[:tokens] if tied else hidden

        def work(states=states, head=head, hidden=hidden, reference=reference):
            kl = linear_kl(states, head, *reference, 8)
            torch.autograd.grad(kl.sum(), leaves(hidden, head), allow_unused=True)

        sizes[tokens] = largest_tensor(work)
    assert sizes[64] == sizes[512] == 8 * 3000


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("more", ["policy", "reference"])
def test_tokens_that_one_model_lacks_are_left_out_of_both(more, reverse):
    hidden, head, reference_hidden, reference_head = both("all")
    larger, cut = (head, reference_head) if more == "policy" else (reference_head, head)
    fewer = cut.first(len(larger.weight) - 2)
    pair = (head, fewer) if more == "policy" else (fewer, reference_head)
    got = linear_kl(hidden, pair[0], reference_hidden, pair[1], reverse=reverse)
    logp, logq = (
        h.logits(x)[:, : len(fewer.weight)].log_softmax(-1)
        for h, x in zip(pair, (hidden, reference_hidden), strict=True)
    )
    expected = logp.exp() * (logp - logq) if reverse else logq.exp() * (logq - logp)
    torch.testing.assert_close(got, expected.sum(-1))
    (gradient,) = torch.autograd.grad(got.sum(), head.weight)
    assert gradient[: len(fewer.weight)].abs().min() > 0
    assert more == "reference" or (gradient[len(fewer.weight) :] == 0).all()
