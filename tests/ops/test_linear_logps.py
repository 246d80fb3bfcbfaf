"""The chunked head against its plain twin."""

import pytest
import torch

from upo.ops.linear_logps import eager_linear_logps, linear_logps


def inputs(tokens=23, width=5, vocabulary=11, dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return draw(tokens, width), draw(vocabulary, width), targets, draw(vocabulary) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 22, 23, 1024])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_equals_its_twin_in_value_and_gradient(bias, chunk, dtype, tolerance):
    hidden, weight, targets, b = inputs(dtype=dtype, bias=bias)
    leaves = [x for x in (hidden, weight, b) if x is not None]
    upstream = torch.linspace(-2, 3, len(targets), dtype=dtype)  # unequal, of both signs, one is nearly 0
    ours, plain = (
        linear_logps(hidden, weight, targets, b, chunk),
        eager_linear_logps(hidden, weight, targets, b),
    )
    torch.testing.assert_close(ours, plain, atol=tolerance, rtol=0)
    for x, y in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(plain, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(x, y, atol=20 * tolerance, rtol=0)


@pytest.mark.parametrize("chunk", [2, 1024])
def test_gradcheck(chunk):
    hidden, weight, targets, bias = inputs(tokens=5, vocabulary=6)
    assert torch.autograd.gradcheck(lambda h, w, b: linear_logps(h, w, targets, b, chunk), (hidden, weight, bias))


@pytest.mark.parametrize("needed", ["hidden", "weight", "bias"])
def test_gives_only_the_gradients_that_are_asked_for(needed):
    tensors = dict(zip(("hidden", "weight", "targets", "bias"), inputs(), strict=True))
    expected = torch.autograd.grad(eager_linear_logps(**tensors).sum(), tensors[needed])[0]
    for name in {"hidden", "weight", "bias"} - {needed}:
        tensors[name] = tensors[name].detach()
    torch.testing.assert_close(
        torch.autograd.grad(linear_logps(**tensors, chunk=4).sum(), tensors[needed])[0], expected
    )


def test_tied_weight_collects_the_gradients_of_both_ends():
    """The embedding looks tokens up and is the head as well."""
    _, weight, targets, _ = inputs()
    ids = targets.roll(1)
    for chunk in (3, 1024):
        ours = torch.autograd.grad(linear_logps(weight[ids].tanh(), weight, targets, None, chunk).sum(), weight)[0]
        plain = torch.autograd.grad(eager_linear_logps(weight[ids].tanh(), weight, targets).sum(), weight)[0]
        torch.testing.assert_close(ours, plain)


def test_bf16_is_as_near_to_the_truth_as_its_twin_and_log_probs_are_fp32():
    hidden, weight, targets, bias = inputs(tokens=600, width=64, vocabulary=500, dtype=torch.bfloat16)
    exact = eager_linear_logps(hidden.double(), weight.double(), targets, bias.double())
    ours = linear_logps(hidden, weight, targets, bias, 7)
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() <= (eager_linear_logps(hidden, weight, targets, bias) - exact).abs().max() + 1e-6
    assert (ours - exact).abs().max() < 0.01 * exact.abs().max()


def test_bf16_gradients_do_not_lose_what_comes_late():
    """600 chunks that all push one way: a sum in bf16 would stand still once it is 256 times an addend."""
    hidden, weight, _, _ = inputs(tokens=600, width=8, vocabulary=50, dtype=torch.bfloat16, bias=False)
    hidden, targets = hidden.detach().abs(), torch.zeros(600, dtype=torch.long)
    exact = torch.autograd.grad(eager_linear_logps(hidden.double(), weight.double(), targets).sum(), weight)[0].float()
    got = torch.autograd.grad(linear_logps(hidden, weight, targets, None, 1).sum(), weight)[0]
    assert got.dtype == torch.bfloat16
    assert (got.float() - exact).norm() / exact.norm() < 0.01


def test_log_probs_of_certain_and_of_impossible_tokens_are_finite():
    hidden = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    weight = torch.eye(2, requires_grad=True)
    logps = linear_logps(hidden, weight, torch.tensor([0, 0]))
    assert logps.tolist() == [0.0, -1e4]
    for gradient in torch.autograd.grad(logps.sum(), (hidden, weight)):
        assert gradient.isfinite().all()


def test_no_token_at_all():
    hidden, weight, targets, bias = inputs(tokens=0)
    logps = linear_logps(hidden, weight, targets, bias)
    assert logps.shape == (0,)
    assert torch.autograd.grad(logps.sum(), weight)[0].abs().sum() == 0


def test_never_holds_all_logits():
    """64 x 50,000 log-probs are 12.8 MB; a chunk of 4 rows is 0.8 MB. Saved tensors stay far below the former."""
    hidden, weight = torch.randn(64, 2, requires_grad=True), torch.randn(50_000, 2, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        linear_logps(hidden, weight, torch.zeros(64, dtype=torch.long), chunk=4)
    assert max(saved) == weight.numel()
