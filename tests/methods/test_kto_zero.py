"""KTO-zero: KTO's loss with z0 = 0, without any mismatched response."""

import math

import pytest
import torch
from cases import Case
from tiny import arrange, units

from upo.data.batch import Batch, Step
from upo.methods.apo_anchored import apo_zero_loss
from upo.methods.kto import kto_loss
from upo.methods.kto_zero import KTOZero
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

CASES = {
    KTOZero: Case(normaliser_cancels=False, defaults={"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
}

BETA = 0.1
CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def method() -> KTOZero:
    """A policy that differs from its reference."""
    made = KTOZero(Policy(config=CONFIG, tokenizer="tiny.tokenizer", dtype="float64"), FrozenReference(), beta=BETA)
    torch.manual_seed(0)
    made.configure_model()
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return made


def slow(r: float, good: bool) -> float:
    x = BETA * r if good else -BETA * r
    return 1 - 1 / (1 + math.exp(-x))


def test_terms_are_kto_with_z0_of_0(method):
    labels = torch.tensor([True, False, False, True])
    batch = Batch(arrange(units([(3, [9, 2]), (5, [1, 4])])), {"preferred": labels})
    statistics = method.statistics(Step((batch,), batch.counts))
    logps = method.response_logps(batch.responses)
    (term,) = method.terms(batch, logps, statistics).values()
    expected = [slow(r, good) for r, good in zip(logps.logratio.tolist(), batch.preferred.tolist(), strict=True)]
    assert max(map(abs, logps.logratio.tolist())) > 0.1
    assert term.values.tolist() == pytest.approx(expected, rel=1e-10)
    assert term.mean_over == "responses"
    gradient = torch.autograd.grad(term.values.sum(), logps.logps)[0]
    assert ((gradient < 0) == batch.preferred).all()


def test_a_pair_is_apo_zero():
    """1 - sigmoid(R_w) of the desirable one and sigmoid(R_l) of the undesirable one."""
    w, r = torch.linspace(-40, 40, 9, dtype=torch.float64), torch.linspace(30, -50, 9, dtype=torch.float64)
    zero, yes = torch.tensor(0.0, dtype=torch.float64), torch.ones(9, dtype=torch.bool)
    torch.testing.assert_close(
        kto_loss(w, yes, zero, beta=BETA) + kto_loss(r, ~yes, zero, beta=BETA), apo_zero_loss(w, r, beta=BETA)
    )


def test_it_asks_for_no_mismatched_responses_and_logs_no_kl():
    assert not KTOZero.view.pairs_up
    assert "kl" not in KTOZero.metric_names
