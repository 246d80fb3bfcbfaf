"""The C++ attention of packed rows against scaled dot-product attention under the dense mask."""

import warnings

import pytest
import torch
from tiny import arrange, units
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from upo.data.layout import Responses
from upo.ops import cpu_attention
from upo.ops.prefix_attention import segments

WORK = units([(5, (3, 1)), (1, (4,)), (30, (2, 2, 6)), (3, (1,)), (40, (9, 9))])  # two rows of 64, one with padding
needs_compiler = pytest.mark.skipif(cpu_attention.library() is None, reason="takes AVX2 and a C++ compiler")


def tensors(responses: Responses, size: int, heads: int, key_heads: int) -> list[Tensor]:
    rows, width = responses.input_ids.shape
    torch.manual_seed(0)
    return [torch.randn(rows, h, width, size, requires_grad=True) for h in (heads, key_heads, key_heads)]


def kernel(responses: Responses, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    plan = segments(responses)
    assert cpu_attention.fits(q, k, v)
    return cpu_attention.attend(q, k, v, plan.pieces, plan.units, plan.longest, scale)


@needs_compiler
@pytest.mark.parametrize(("size", "heads", "key_heads"), [(8, 4, 2), (16, 2, 2), (24, 6, 2), (64, 4, 1)])
def test_equals_the_dense_mask_in_value_and_gradient(size: int, heads: int, key_heads: int) -> None:
    responses = arrange(WORK)
    q, k, v = tensors(responses, size, heads, key_heads)
    real = (responses.prompt_segment_ids >= 0)[:, None, :, None]
    got = kernel(responses, q, k, v, 0.4)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    mask = responses.attention_mask
    expected = scaled_dot_product_attention(*exact, attn_mask=mask, scale=0.4, enable_gqa=heads > key_heads)
    torch.testing.assert_close((got * real).double(), expected * real, rtol=1e-5, atol=5e-6)
    assert not (got * ~real).any()
    grad = torch.randn_like(got)
    mine = torch.autograd.grad((got * real * grad).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * real * grad).sum(), exact)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-5)


@needs_compiler
def test_any_strides_and_any_number_of_threads_give_the_same_bits() -> None:
    responses = arrange(WORK)
    q, k, v = (x.detach() for x in tensors(responses, 16, 4, 2))
    strange = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k)]
    strange.append(torch.stack([v, v], -1)[..., 0].requires_grad_())
    grad, before, results = torch.randn_like(q), torch.get_num_threads(), []
    try:
        for threads, inputs in ((1, [x.requires_grad_() for x in (q, k, v)]), (3, strange)):
            torch.set_num_threads(threads)
            out = kernel(responses, *inputs)
            results.append([out, *torch.autograd.grad(out, inputs, grad)])
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


@needs_compiler
def test_a_response_sees_nothing_of_its_siblings() -> None:
    responses = arrange(WORK)
    q, k, v = tensors(responses, 8, 2, 2)
    first = (responses.response_segment_ids == 0)[:, None, :, None]
    (grad,) = torch.autograd.grad((kernel(responses, q, k, v) * first).sum(), v)
    seen = (grad != 0).any(-1).any(1)
    prompt = responses.prompt_segment_ids == 0
    assert (seen == (prompt & (responses.response_segment_ids <= 0))).all()


@needs_compiler
def test_extreme_scores_stay_finite_and_broken_ones_show() -> None:
    responses = arrange(WORK)
    q, k, v = tensors(responses, 8, 2, 2)
    out = kernel(responses, 1e3 * q, 1e3 * k, v)
    assert out.isfinite().all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v)))
    assert out.abs().max() <= v.abs().max(), "means of values"
    with torch.no_grad():
        k[0, 0, 0, 0] = float("nan")
    assert kernel(responses, q, k, v)[0, 0, 1].isnan().any()


@needs_compiler
def test_what_does_not_fit_goes_through_pytorch() -> None:
    x = torch.randn(1, 2, 4, 8)
    assert cpu_attention.fits(x, x, x)
    for other in (x.double(), x.bfloat16(), x[..., :6], x.to("meta")):
        assert not cpu_attention.fits(other, other, other)
    assert not cpu_attention.fits(x, x, x.repeat(1, 1, 1, 2))


def test_without_a_compiler_there_is_a_warning_and_the_same_result(monkeypatch, tmp_path) -> None:
    responses = arrange(WORK)
    q, k, v = tensors(responses, 8, 4, 2)
    usual = segments(responses).attend(q, k, v, None)
    monkeypatch.setattr(cpu_attention, "FOLDER", tmp_path)
    monkeypatch.setattr(cpu_attention.platform, "system", lambda: "Linux")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setenv("CXX", "no-such-compiler")
    cpu_attention.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no-such-compiler.*C\\+\\+ compiler"):
            assert not cpu_attention.fits(q, k, v)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            got = segments(responses).attend(q, k, v, None)
    finally:
        cpu_attention.library.cache_clear()
    torch.testing.assert_close(got, usual, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_a_source_is_compiled_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cpu_attention, "FOLDER", tmp_path)
    cpu_attention.library.cache_clear()
    try:
        assert cpu_attention.library() is not None
        monkeypatch.setenv("CXX", "no-such-compiler")
        cpu_attention.library.cache_clear()
        assert cpu_attention.library() is not None
    finally:
        cpu_attention.library.cache_clear()
    assert [p.suffix for p in tmp_path.iterdir()] == [".so"]
