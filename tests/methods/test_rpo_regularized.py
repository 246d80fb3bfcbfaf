"""RPO: DPO and the likelihood of the chosen response, in both official scalings."""

import math

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND, draws, golden_rows, gradients, logps_of, made, total

from upo.methods.dpo import DPO
from upo.methods.rpo_regularized import RegularizedPO

CASES = {RegularizedPO: Case(normaliser_cancels=True, defaults={"beta": 0.01, "eta": 0.005, "nll_per_token": False})}


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 0.423186), (SECOND, 0.425686)])
def test_golden_values(fixture, golden):
    assert total(made(RegularizedPO, beta=0.1), golden_rows(fixture)).item() == pytest.approx(golden, abs=5e-7)


ROWS = logps_of([-6.0, -8.0], reference=[-7.0, -7.0], lengths=[3, 2], prompts=[0, 0])


def test_by_hand_in_both_scalings():
    """z = 0.5 (1 + 1) = 1; beta eta 6 = 0.5 * 0.1 * 6, or eta 6/3 = 0.2 without beta."""
    assert total(made(RegularizedPO, beta=0.5, eta=0.1), ROWS).item() == pytest.approx(0.3132617 + 0.3)
    per_token = made(RegularizedPO, beta=0.5, eta=0.1, nll_per_token=True)
    assert total(per_token, ROWS).item() == pytest.approx(0.3132617 + 0.2)
    assert per_token.reward(ROWS).tolist() == [0.5, -0.5]


def batch(logps: torch.Tensor):
    n = len(logps)
    reference = -draws(n, seed=1).abs().to(logps.dtype)
    return logps_of(
        logps, reference=reference, lengths=[1 + i % 5 for i in range(n)], prompts=[i // 2 for i in range(n)]
    )


def test_without_eta_it_is_dpo_even_smoothed():
    rows = batch(-draws(20).abs())
    torch.testing.assert_close(total(made(RegularizedPO, beta=0.1, eta=0.0), rows), total(made(DPO, beta=0.1), rows))


def test_log_2_of_preference_where_policy_is_reference():
    rows = logps_of([-6.0, -8.0], reference=[-6.0, -8.0], prompts=[0, 0])
    assert total(made(RegularizedPO), rows).item() == pytest.approx(math.log(2) + 0.01 * 0.005 * 6)


def test_exact_gradients():
    """-beta (sigmoid(-z) + eta) for the chosen response, beta sigmoid(-z) for the rejected one."""
    method, x = made(RegularizedPO, beta=0.1, eta=0.2), -draws(20).abs()
    rows = batch(x)
    z = 0.1 * (rows[0::2].logratio - rows[1::2].logratio)
    (gradient,) = gradients(lambda y: total(method, batch(y)), x)
    torch.testing.assert_close(gradient[0::2], -0.1 * (torch.sigmoid(-z) + 0.2))
    torch.testing.assert_close(gradient[1::2], 0.1 * torch.sigmoid(-z))


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("far", [-1e4, -1e-9])
def test_finite_far_out(far, per_token):
    method, x = made(RegularizedPO, nll_per_token=per_token), torch.tensor([far, -1.0, -1.0, far])
    assert total(method, batch(x)).isfinite().all()
    assert gradients(lambda y: total(method, batch(y)), x)[0].isfinite().all()
