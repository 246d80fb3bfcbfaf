"""SRPO: both losses, the identities that they come from, and pairs under three prompts."""

import pytest
import torch
from cases import Case
from losses import draws, gradients, logps_of, made
from tiny import plain_logps, tokenizer
from training import fit, make

from upo.data.example import Example, Response
from upo.data.module import PreferenceData
from upo.data.report import SourceReport
from upo.methods.ipo import ipo_loss
from upo.methods.srpo import IMPROVE, SRPO, SRPOView, generator_loss, improver_loss, improver_prompt

CASES = {
    SRPO: Case(
        metrics={"loss/generator", "loss/improver"}, normaliser_cancels=False, defaults={"beta": 0.1, "alpha": 0.5}
    ),
}

BETA = 0.1


def tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([v], dtype=torch.float64) for v in values]


def test_by_hand():
    """Q(w|w), Q(l|w), Q(w|l), Q(l|l) = 1, -2, 4, 3: (0.5 - 0.1)^2 + (0.5 - 0.3)^2;
    R = 2, -3: (0.5 - 0.5 - 0.05 (4 - 1 + 3 + 2))^2."""
    q = tensors(1, -2, 4, 3)
    assert improver_loss(*q, beta=BETA).item() == pytest.approx(0.16 + 0.04)
    assert generator_loss(*tensors(2, -3), *q, beta=BETA).item() == pytest.approx(0.16)


def test_golden_fixtures_where_the_improver_is_the_reference():
    """R_w - R_l = 7 in both fixtures: (0.5 - 0.7)^2."""
    for r in ((2.0, -5.0), (-3.0, -10.0)):
        assert generator_loss(*tensors(*r), *tensors(0, 0, 0, 0), beta=BETA).item() == pytest.approx(0.04)


def test_an_improver_that_ignores_what_it_is_shown_leaves_ipo():
    """IPO with tau = beta is the squared bracket over beta^2."""
    r_w, r_l, w, o = draws(4, 30)
    ipo = BETA**2 * ipo_loss(w, o, tau=BETA)
    torch.testing.assert_close(improver_loss(w, o, w, o, beta=BETA), 2 * ipo)
    torch.testing.assert_close(generator_loss(r_w, r_l, w, o, w, o, beta=BETA), BETA**2 * ipo_loss(r_w, r_l, tau=BETA))


def test_the_games_solution_satisfies_the_brackets():
    """Five answers with preferences P: the best improver has Q(y'|y) = P(y' > y) / beta - log Z(y), the generator then
    R(y) = -log Z(y) up to a constant; with P in place of hard labels every bracket is 0."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    p = torch.sigmoid(scores - scores.T)  # p[i, j]: i is preferred to j
    reference = torch.randn(5, generator=generator, dtype=torch.float64).softmax(0)
    z = (reference[:, None] * torch.exp(p / BETA)).sum(0)
    q = p / BETA - z.log()
    q_policy = reference[:, None] * q.exp()
    torch.testing.assert_close(q_policy.sum(0), torch.ones(5, dtype=torch.float64))
    r = -z.log()
    for i in range(5):
        for j in range(5):
            want = p[i, j] - 0.5
            assert torch.isclose(want, BETA * (q[i, j] - q[j, j]))
            assert torch.isclose(want, BETA * (q[i, i] - q[j, i]))
            assert torch.isclose(want, BETA * (r[i] - r[j]) + BETA / 2 * (q[i, j] - q[i, i] + q[j, j] - q[j, i])), (
                "the bracket of L_pi with 1 in place of P is the loss"
            )


def test_gradients():
    x = draws(6, 9)
    assert torch.autograd.gradcheck(lambda *x: generator_loss(*x, beta=BETA), tuple(x.clone().requires_grad_()))
    assert torch.autograd.gradcheck(lambda *q: improver_loss(*q, beta=BETA), tuple(x[2:].clone().requires_grad_()))
    w_w, l_w, w_l, l_l = gradients(lambda *q: improver_loss(*q, beta=BETA), *torch.zeros(4, 3))
    assert (w_w < 0).all() and (w_l < 0).all() and (l_w > 0).all() and (l_l > 0).all()
    r_w, r_l, *_ = gradients(lambda *x: generator_loss(*x, beta=BETA), *torch.zeros(6, 3))
    assert r_w.tolist() == pytest.approx([-BETA] * 3) and r_l.tolist() == pytest.approx([BETA] * 3)


@pytest.mark.parametrize("far", [1e4, -1e4, -1e-9])
def test_finite_far_out(far):
    x = torch.full((6, 2), far)
    x[::2] *= -1
    assert generator_loss(*x, beta=BETA).isfinite().all() and improver_loss(*x[2:], beta=BETA).isfinite().all()
    assert all(g.isfinite().all() for g in gradients(lambda *x: generator_loss(*x, beta=BETA), *x))


def test_what_the_improver_reads():
    assert improver_prompt("Say it:", " yes") == f"Say it: yes\n\n{IMPROVE}\n\n"
    told = improver_prompt(({"role": "user", "content": "Hi"},), "Ho")
    assert [m["role"] for m in told] == ["user", "assistant", "user"] and told[1]["content"] == "Ho"


def data(layout: str = "packed", **options) -> PreferenceData:
    module = PreferenceData(
        (), validation=0, layout=layout, **{"max_length": 200, "tokens_per_microbatch": 300} | options
    )
    pairs = [("Say it.", "Yes, gladly.", "No"), ("Why?", "Because", "I do not know at all"), ("A", "b", "c d")]
    examples = [Example(p, (Response(w, rank=0), Response(r, rank=1)), source="made") for p, w, r in pairs]
    module.examples = lambda: (examples, [])
    module.report.add("made", SourceReport(origin="here"))
    module.prepare(tokenizer(), SRPOView())
    return module


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_six_log_probs_a_pair(layout):
    module, method = data(layout), make(SRPO)
    method.configure_model()
    batch = module.train.batch([0, 1, 2])
    assert batch.counts == {
        "prompts": 3,
        "responses": 6,
        "tokens": sum(len(r) for u in module.train.units for r in u.responses),
    }
    got = method.policy(batch.responses)["logps"].view(3, 6)
    for row, unit in zip(got, module.train.units, strict=True):
        asked = [unit.prompt, *(c.prompt for c in unit.groups[1:])]
        texts = [tokenizer().decode(p) for p in asked]
        shown = [r.text for r in unit.example.responses]
        assert texts[1:] == [f"{texts[0]}{s}\n\n{IMPROVE}\n\n" for s in shown], "chosen first, then rejected"
        expected = [plain_logps(method.policy, p, r).sum() for p in asked for r in unit.responses]
        torch.testing.assert_close(row, torch.stack(expected), rtol=1e-4, atol=1e-4)
    cost = sum(module.train.cost(i) for i in range(3))
    assert cost >= (batch.responses.prompt_segment_ids >= 0).sum(), "micro-batches are cut by what is really fed"


def test_a_pair_whose_improver_does_not_fit_is_dropped_whole():
    everyone = len(data().train)
    longest = max(len(p.prompt) + max(map(len, p.responses)) for u in data().train.units for p in u.groups)
    fewer = data(max_length=longest - 1)
    assert 0 < len(fewer.train) < everyone and all(len(u.groups) == 3 for u in fewer.train.units)
    cut = data(max_length=longest - 1, overlong=["truncate_prompt_left"])
    assert len(cut.train) == everyone
    for unit in cut.train.units:
        assert all(c.responses == unit.responses for c in unit.groups)


def test_start_and_alpha(tmp_path):
    """All log-ratios are 0: L_pi = 1/4, L_q = 1/2; accuracies count the generator's pairs alone."""
    for alpha, loss in ((0.5, 0.375), (1.0, 0.25), (0.0, 0.5)):
        done = fit(make(SRPO, alpha=alpha), tmp_path, steps=1)
        assert done.watch.losses[0] == pytest.approx(loss, abs=1e-5)
        assert done.trainer.callback_metrics["train/loss/improver"].item() == pytest.approx(0.5, abs=1e-5)


def test_tracked_rewards_are_those_of_the_generator():
    module, method = data(), made(SRPO)
    batch = module.train.batch([0, 1])
    logps = logps_of(
        [1.0, 0.0, 9, 9, 9, 9, 0.0, 3.0, 9, 9, 9, 9], reference=[0.0] * 12, prompts=[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    )
    method.update_metrics("val", batch, logps)
    got = method.compute_metrics("val")
    assert got["rewards/accuracies"] == 0.5 and got["rewards/margins"].item() == pytest.approx(BETA * (1 - 3) / 2)
