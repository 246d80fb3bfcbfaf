"""RDPO and RORPO: the term in both forms, the rationale's own prompt, and that the rest is DPO and ORPO."""

import math

import pytest
import torch
from attrs import evolve
from losses import assert_gradcheck, draws, gradients, logps_of, made
from losses import minus_log_sigmoid as ls
from tiny import batch_of, examples_of, tokenizer, unit

from upo.data.batch import Batch
from upo.data.codec import TextCodec
from upo.data.example import Example, Response
from upo.data.report import DataReport
from upo.data.tokenize import Limits
from upo.data.units import Group
from upo.methods.dpo import DPO
from upo.methods.orpo import ORPO
from upo.methods.rationale import RDPO, RORPO, RationaleView, rationale_loss


def batch() -> Batch:
    work = [
        unit([3, 4], [5, 6], [7]).with_group(Group([3, 4, 5, 6, 7, 8], ([9, 9, 9],), "rationale")),
        unit([3], [5], [7, 8]).with_group(Group([3, 5, 7, 8, 8], ([9],), "rationale")),
    ]
    return batch_of(work, RationaleView())


LOGPS = logps_of([-40.0, -55.0, -30.0, -45.0, -60.0, -20.0], reference=[-42.0, -50.0, -31.0] * 2, lengths=[2, 1, 3] * 2,
                 prompts=[0, 0, 1, 2, 2, 3])  # fmt: skip


def test_golden_values():
    """Both fixtures give DPO's 0.403186; the rationales of -30 and -20 nats are weighed by 0.01."""
    terms = made(RDPO, beta=0.1, gamma=0.01).terms(batch(), LOGPS, {})
    assert terms["preference"].values.tolist() == pytest.approx([0.403186, 0.403186], abs=5e-7)
    assert terms["rationale"].values.tolist() == pytest.approx([0.3, 0.2])
    assert {t.mean_over for t in terms.values()} == {"prompts"}


def test_the_form_of_the_code_by_hand_and_its_weaker_gradient():
    """-log sigmoid(0.01 * -100) = log(1 + e)."""
    r = torch.tensor([-100.0], dtype=torch.float64)
    assert rationale_loss(r, gamma=0.01, log_sigmoid=True).item() == pytest.approx(math.log(1 + math.e))
    r = -draws(30).abs()
    expected = [ls(0.3 * x) for x in r.tolist()]
    assert rationale_loss(r, gamma=0.3, log_sigmoid=True).tolist() == pytest.approx(expected, rel=1e-12)
    (paper,) = gradients(lambda x: rationale_loss(x, gamma=0.3), r)
    (code,) = gradients(lambda x: rationale_loss(x, gamma=0.3, log_sigmoid=True), r)
    share = code / paper
    assert (paper == -0.3).all() and (share > 0.5).all() and (share <= 1).all()
    assert_gradcheck(lambda x: rationale_loss(x, gamma=0.3, log_sigmoid=True), r)


@pytest.mark.parametrize("far", [-1e4, -1e-9])
@pytest.mark.parametrize("form", [False, True])
def test_finite_far_out(far, form):
    r = torch.tensor([far])
    assert rationale_loss(r, gamma=0.1, log_sigmoid=form).isfinite().all()
    assert gradients(lambda x: rationale_loss(x, gamma=0.1, log_sigmoid=form), r)[0].isfinite().all()


@pytest.mark.parametrize(("kind", "parent"), [(RDPO, DPO), (RORPO, ORPO)])
def test_without_weight_it_is_its_parent(kind, parent):
    shape = {"lengths": [2, 1, 3] * 2, "prompts": [0, 0, 1, 2, 2, 3]}
    logps = logps_of([-1.0, -2.0, -3.0, -1.5, -0.5, -4.0], reference=[-1.2] * 6, **shape)
    plain = made(parent).terms(batch(), logps[batch().own_rows], {})
    for form, constant in ((False, 0.0), (True, math.log(2))):
        terms = made(kind, gamma=0.0, log_sigmoid=form).terms(batch(), logps, {})
        for name, term in plain.items():
            assert torch.equal(terms[name].values, term.values) and terms[name].weight == term.weight
        assert terms["rationale"].values.tolist() == pytest.approx([constant] * 2)


def test_metrics_and_counts_leave_rationales_out():
    method, made_of = made(RDPO, beta=0.1), batch()
    assert made_of.counts == {"prompts": 2, "responses": 4, "tokens": 6}
    method.update_metrics("val", made_of, LOGPS)
    seen = {name: float(x) for name, x in method.compute_metrics("val").items()}
    assert seen["logps/chosen"] == -42.5 and seen["logps/rejected"] == -57.5
    assert seen["rewards/margins"] == pytest.approx(0.7) and seen["rewards/accuracies"] == 1


@pytest.mark.parametrize("prompt", ["Q: two and two?\n", ({"role": "user", "content": "Two and two?"},)])
def test_the_rationale_answers_a_prompt_that_shows_both_responses(prompt):
    pair = Example(prompt, (Response("Four.", rank=0), Response("Five.", rank=1)), rationale="Counting gives four.")
    units = TextCodec(tokenizer()).encode(RationaleView().drafts(pair, 5), Limits(256, 256, [], None), DataReport())
    _, tokens = units[0].groups
    assert tokens.role == "rationale"
    decode = tokenizer().decode
    shown = decode(tokens.prompt)
    assert "wo and two?" in shown and "Four." in shown and "Five." in shown and "Counting" not in shown
    assert decode(tokens.responses[0]).strip() == "Counting gives four.<|end|>"
    assert examples_of(RationaleView(), evolve(pair, rationale=None), 5) == []
