"""CPO-SimPO: its two parents, joined."""

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND, draws, golden_rows, gradients, logps_of, made, total

from upo.methods.cpo_simpo import CPOSimPO
from upo.methods.simpo import SimPO

CASES = {CPOSimPO: Case(defaults={"beta": 10.0, "gamma": 5.4, "alpha": 0.05, "nll_per_token": True})}


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 1.137488), (SECOND, 1.215686)])
def test_golden_values(fixture, golden):
    loss = total(made(CPOSimPO, beta=2.0, gamma=1.0, alpha=0.05), golden_rows(fixture))
    assert loss.item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """1 (-1 + 3) - 1 = 1; the chosen response costs 1 nat a token or 2 in all."""
    rows = logps_of([-2.0, -3.0], lengths=[2, 1], prompts=[0, 0])
    options = {"beta": 1.0, "gamma": 1.0, "alpha": 0.1}
    assert total(made(CPOSimPO, **options), rows).item() == pytest.approx(0.3132617 + 0.1)
    assert total(made(CPOSimPO, **options, nll_per_token=False), rows).item() == pytest.approx(0.3132617 + 0.2)


def rows(logps: torch.Tensor):
    n = len(logps)
    return logps_of(logps, lengths=[1 + i % 5 for i in range(n)], prompts=[i // 2 for i in range(n)])


def test_simpo_without_alpha_and_alpha_means_on_top_of_it():
    batch = rows(-draws(20).abs())
    simpo = total(made(SimPO, beta=2.5, gamma=1.0), batch)
    torch.testing.assert_close(total(made(CPOSimPO, beta=2.5, gamma=1.0, alpha=0.0), batch), simpo)
    expected = simpo - 0.3 * batch[0::2].mean
    torch.testing.assert_close(total(made(CPOSimPO, beta=2.5, gamma=1.0, alpha=0.3), batch), expected)
    torch.testing.assert_close(made(CPOSimPO, beta=2.5).reward(batch), made(SimPO, beta=2.5).reward(batch))


def test_gradients():
    method = made(CPOSimPO)
    (gradient,) = gradients(lambda x: total(method, rows(x)), -draws(20).abs())
    assert (gradient[0::2] < 0).all() and (gradient[1::2] >= 0).all() and (gradient[1::2] > 0).any()
    for far in (-1e4, -1e-9):
        x = torch.tensor([far, -1.0, -1.0, far])
        assert total(method, rows(x)).isfinite().all()
        assert gradients(lambda x: total(method, rows(x)), x)[0].isfinite().all()
