"""What a loss may look at."""

import pytest
import torch

from upo.errors import UserError
from upo.models.logps import AXIS, DIVERGENCES, ResponseLogps

LOGPS = ResponseLogps(
    torch.tensor([-6.0, -2.0, -9.0, -4.0]),
    torch.tensor([3, 1, 9, 2]),
    torch.tensor([0, 0, 1, 1]),
    torch.tensor([-5.0, -3.0, -9.0, -1.0]),
    torch.arange(8.0).view(4, 2),
    {"prompt_hidden": torch.randn(2, 5)},
)


def test_mean_and_logratio():
    assert LOGPS.mean.tolist() == [-2.0, -2.0, -1.0, -2.0]
    assert LOGPS.logratio.tolist() == [-1.0, 1.0, 0.0, -3.0]


@pytest.mark.parametrize("rows", [slice(1, None, 2), torch.tensor([1, 3]), torch.tensor([False, True, False, True])])
def test_some_of_the_rows(rows):
    some = LOGPS[rows]
    assert some.logps.tolist() == [-2.0, -4.0] and some.lengths.tolist() == [1, 2]
    assert some.prompt_index.tolist() == [0, 1] and some.logratio.tolist() == [1.0, -3.0]
    assert some.rewards.tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert some.outputs["prompt_hidden"].shape == (2, 5), "by prompt, to which prompt_index points"


def test_without_reference():
    bare = ResponseLogps(*(getattr(LOGPS, name) for name in ("logps", "lengths", "prompt_index")))
    assert bare[:2].reference_logps is None and bare[:2].rewards is None
    with pytest.raises(UserError, match=r"model\.reference"):
        _ = bare[:2].logratio


VALUES = torch.tensor([1.0, 2, 4, 8, 16, 32, 64])
STATES = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))


def by_token(values: torch.Tensor = VALUES) -> ResponseLogps:
    """Four responses of three, one, two and one token."""
    row = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    known = {"prompt_mean": torch.tensor([[1.0], [2.0]]), "reward": torch.arange(4.0), "layers": STATES}
    return ResponseLogps(
        torch.zeros(4), torch.tensor([3, 1, 2, 1]), torch.tensor([0, 0, 1, 1]), outputs={"kl": values},
        reference_outputs=known, response_index=row,
    )  # fmt: skip


SELECTIONS = [
    (slice(0, None, 2), [0, 1, 2, 4, 5], [7, 48], [0, 2]),
    (slice(1, None, 2), [3, 6], [8, 64], [1, 3]),
    (torch.tensor([3, 0]), [6, 0, 1, 2], [64, 7], [3, 0]),
    (torch.tensor([False, False, True, False]), [4, 5], [48], [2]),
    (slice(0, 0), [], [], []),
]


@pytest.mark.parametrize(("rows", "tokens", "sums", "responses"), SELECTIONS)
def test_every_value_follows_its_axis(rows, tokens, sums, responses):
    some = by_token()[rows]
    assert some.outputs["kl"].tolist() == VALUES[tokens].tolist()
    assert some.sums(some.outputs["kl"]).tolist() == sums
    assert torch.equal(some.reference_outputs["layers"], STATES[tokens])
    assert some.reference_outputs["reward"].tolist() == responses
    assert some.reference_outputs["prompt_mean"].tolist() == [[1.0], [2.0]], "by prompt, to which prompt_index points"
    assert some.lengths.tolist() == torch.bincount(some.response_index, minlength=len(some.lengths)).tolist()


def test_a_selection_of_a_selection():
    some = by_token()[1:][1::2]
    assert (
        some.outputs["kl"].tolist() == [16, 32]
        and some.response_index.tolist() == [0, 0]
        and some.lengths.tolist() == [2]
    )


def test_the_gradient_goes_to_the_chosen_tokens_alone():
    values = VALUES.clone().requires_grad_()
    some = by_token(values)[1::2]
    (gradient,) = torch.autograd.grad(some.sums(some.outputs["kl"]).sum(), values)
    assert gradient.tolist() == [0, 0, 0, 1, 0, 0, 1]


def test_lists_know_no_tokens():
    lists = by_token()[torch.tensor([[0, 1], [2, 3]])]
    assert lists.lengths.tolist() == [[3, 1], [2, 1]] and not lists.outputs
    assert lists.reference_outputs["reward"].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(AssertionError, match="no longer know their tokens"):
        lists.sums(VALUES)


def test_every_quantity_has_one_axis():
    assert set(AXIS.values()) == {"token", "response", "prompt"} and AXIS.keys() >= DIVERGENCES
    with pytest.raises(KeyError):
        ResponseLogps(torch.zeros(1), torch.ones(1).long(), torch.zeros(1).long(), outputs={"new": VALUES})[:1]
