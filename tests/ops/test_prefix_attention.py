"""Attention by segments against its eager twin: scaled dot-product attention under the dense mask."""

import pytest
import torch
from tiny import arrange, units
from torch.nn.functional import scaled_dot_product_attention

from upo.ops.flex_attention import blocks
from upo.ops.prefix_attention import plan, prefix_attention, segments

WORK = units([(5, (3, 1)), (1, (4,)), (30, (2, 2, 6)), (3, (1,)), (40, (9, 9))])  # two rows of 64, one with padding


@pytest.mark.parametrize("call", [0, 50, 4096])
@pytest.mark.parametrize("heads", [2, 4])
def test_equals_the_dense_mask_in_value_and_gradient(heads: int, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upo.ops.prefix_attention.CALL", call)
    responses = arrange(WORK)
    rows, width = responses.input_ids.shape
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(rows, h, width, 8, dtype=torch.float64) for h in (4, heads, heads, 4))
    for x in (q, k, v):
        x.requires_grad_()
    real = (responses.prompt_segment_ids >= 0)[:, None, :, None]
    plan = segments(responses)
    got = prefix_attention(None, q, k, v, None, segments=plan, scaling=0.3)[0].transpose(1, 2)
    expected = scaled_dot_product_attention(
        q, k, v, attn_mask=responses.attention_mask, scale=0.3, enable_gqa=heads < 4
    )
    torch.testing.assert_close(got * real, expected * real, rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad((got * real * grad).sum(), (q, k, v), retain_graph=True)
    theirs = torch.autograd.grad((expected * real * grad).sum(), (q, k, v))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert plan.calls == 1


def test_every_input_token_belongs_to_one_piece() -> None:
    responses = arrange(WORK)
    plan = segments(responses)
    asked = torch.cat([g.queries.flatten()[g.real] for g in plan.groups])
    assert asked.sort().values.tolist() == (responses.prompt_segment_ids.flatten() >= 0).nonzero()[:, 0].tolist()
    bodies = sum(len(g.queries) for g in plan.groups if g.mask is not None)
    assert bodies == sum(n > 1 for n in responses.lengths.tolist())


def test_short_pieces_share_a_call_and_long_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(segments(arrange(WORK)).groups) == 2
    monkeypatch.setattr("upo.ops.prefix_attention.CALL", 0)
    apart = segments(arrange(WORK)).groups
    assert len(apart) > 4, "only pieces of equal size, which need no padding"
    assert all(len(g.real) == g.queries.numel() for g in apart)


@pytest.mark.parametrize("heads", [2, 4])
def test_blocks_equal_segments(heads: int) -> None:
    """FlexAttention's plain form: the block mask shows the same tokens."""
    responses = arrange(WORK)
    rows, width = responses.input_ids.shape
    torch.manual_seed(0)
    q, k, v = (torch.randn(rows, h, width, 16) for h in (4, heads, heads))
    real = (responses.prompt_segment_ids >= 0)[:, :, None, None]
    a = blocks(responses, is_compiled=False).attend(q, k, v, 0.3)
    b = segments(responses).attend(q, k, v, 0.3)
    torch.testing.assert_close(a * real, b * real, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_blocks_equal_the_dense_mask_on_a_gpu(dtype: torch.dtype) -> None:
    responses = arrange(WORK).to("cuda")
    rows, width = responses.input_ids.shape
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(rows, h, width, 64, device="cuda", dtype=dtype) for h in (4, 2, 2, 4))
    for x in (q, k, v):
        x.requires_grad_()
    real = (responses.prompt_segment_ids >= 0)[:, None, :, None]
    got = plan(responses).attend(q, k, v, 0.3).transpose(1, 2)
    mask = responses.attention_mask
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(got * real, expected * real, **close)
    mine = torch.autograd.grad((got * real * grad).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * real * grad).sum(), (q, k, v))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, **close)
