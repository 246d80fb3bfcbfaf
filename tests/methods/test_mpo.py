"""MPO: sums of methods over one forward pass."""

from functools import partial

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND, golden_rows, made, total
from tiny import batch_of, policy, units

from upo.cli.main import CLI
from upo.data.batch import Step
from upo.data.views import PairedView
from upo.errors import UserError
from upo.methods import DPO, KTO, MODPO, MPO, NCA, ODPO, TDPO2, WPO, CalDPO, KTOPair, MaPO, SimPO, SparsePO
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

CASES = {
    MPO: Case(
        options={"losses": {"preference": DPO, "quality": NCA}, "nll_weight": 1.0},
        metrics={"loss/nll", "loss/preference", "loss/quality"},
        normaliser_cancels=False,
        defaults={"weights": None, "nll_weight": 0.0},
    ),
}

PAPER = {"losses": {"preference": partial(DPO, beta=0.1), "quality": partial(NCA, beta=0.1)}}
WEIGHTS = {"preference": 0.8, "quality": 0.2}


@pytest.mark.parametrize(
    ("fixture", "dpo", "nca", "nll"), [(FIRST, 0.403186, 1.234247, 2.0), (SECOND, 0.403186, 1.288164, 2.25)]
)
def test_golden_values(fixture, dpo, nca, nll):
    """Those of its parts; 40 or 45 nats over 20 tokens."""
    method = made(MPO, **PAPER, weights=WEIGHTS, nll_weight=0.5)
    assert total(method, golden_rows(fixture)).item() == pytest.approx(0.8 * dpo + 0.2 * nca + 0.5 * nll, abs=1e-6)


def test_one_loss_alone_is_that_loss_and_weights_are_1_by_default():
    rows = golden_rows(SECOND)
    alone = made(MPO, losses={"preference": partial(DPO, beta=0.3)})
    torch.testing.assert_close(total(alone, rows), total(made(DPO, beta=0.3), rows))
    assert total(made(MPO, **PAPER), rows).item() == pytest.approx(0.403186 + 1.288164, abs=1e-6)
    assert alone.reward(rows).tolist() == pytest.approx([-0.9, -3.0]), "the first loss's"


def test_the_terms_of_a_method_keep_their_own_weights():
    rows, whole = golden_rows(FIRST), made(CalDPO)
    mixed = made(MPO, losses={"a": CalDPO}, weights={"a": 3.0})
    torch.testing.assert_close(total(mixed, rows), 3 * total(whole, rows))


@pytest.mark.parametrize(("a", "b"), [(DPO, SimPO), (TDPO2, WPO), (MaPO, SimPO)])
def test_gradient_is_the_weighted_sum(a, b):
    """Also where losses look at more than log-probs: all is asked for in the one forward pass."""

    def of(method):
        batch = batch_of(WORK, PairedView())
        step = Step((batch,), {"prompts": 2, "responses": 4, "tokens": 12})
        loss = method.loss_of(batch, step, {}, "val")
        return torch.autograd.grad(loss, list(method.policy.parameters()))

    shared, reference = policy(dtype="float64"), FrozenReference()
    reference.build(policy(dtype="float64", seed=1))
    mixed = MPO(shared, reference, losses={"a": a, "b": b}, weights={"a": 0.5, "b": 2.0})
    alone = [of(kind(shared, reference if kind.needs.reference is not None else None)) for kind in (a, b)]
    for ours, first, second in zip(of(mixed), *alone, strict=True):
        torch.testing.assert_close(ours, 0.5 * first + 2.0 * second, rtol=1e-4, atol=1e-6)


WORK = units([(3, [4, 2]), (2, [1, 5])])


def test_one_forward_pass_of_each_model(monkeypatch):
    method = MPO(policy(), FrozenReference(), losses={"a": DPO, "b": NCA, "c": SimPO}, nll_weight=1.0)
    method.configure_model()
    calls = []
    forward = Policy.forward
    monkeypatch.setattr(Policy, "forward", lambda self, *args: calls.append(self) or forward(self, *args))
    batch = batch_of(WORK, PairedView())
    method.loss_of(batch, Step((batch,), {"prompts": 2, "responses": 4, "tokens": 12}), {}, "val")
    assert len(calls) == 2
    values = {name: float(x) for name, x in method.compute_metrics("val").items()}
    parts = [values[f"loss/{name}"] for name in ("a", "b", "c", "nll")]
    assert values["loss"] == pytest.approx(sum(parts), rel=1e-5)


def test_the_losses_are_no_parameters_of_their_own():
    method = MPO(policy(), FrozenReference(), **PAPER)
    assert {name.split(".")[0] for name in method.state_dict()} == {"policy"}


def test_reference_free_losses_need_no_reference():
    nowhere = Policy(path="nowhere")
    assert MPO(nowhere, losses={"a": SimPO}, nll_weight=1.0).needs.reference is None
    with pytest.raises(UserError, match="MPO uses no reference"):
        MPO(nowhere, FrozenReference(), losses={"a": SimPO})
    with pytest.raises(UserError, match="needs a reference"):
        MPO(nowhere, losses={"a": SimPO, "b": DPO})


@pytest.mark.parametrize("kind", [ODPO, KTO, KTOPair, SparsePO, partial(MODPO, reward_weights={"r": 0.5})])
def test_methods_that_need_more_than_pairs_are_refused(kind):
    with pytest.raises(UserError, match=r"losses\.b: \w+ needs statistics of whole steps"):
        made(MPO, losses={"a": DPO, "b": kind})


def test_the_reward_is_the_first_one_s_and_reads_what_it_reads():
    assert made(MPO, losses={"a": TDPO2, "b": DPO}).needs.reward == {"kl"}
    assert made(MPO, losses={"a": DPO, "b": TDPO2}).needs.reward == frozenset()


def test_mistakes_are_named():
    with pytest.raises(UserError, match="name at least one"):
        made(MPO, losses={})
    with pytest.raises(UserError, match="no loss is named qality"):
        made(MPO, **PAPER, weights={"qality": 0.2})


def test_losses_in_yaml(tmp_path, capsys):
    file = tmp_path / "mpo.yaml"
    file.write_text(
        "model:\n  class_path: MPO\n  init_args:\n    policy: {path: nowhere}\n    reference: FrozenReference\n"
        "    losses:\n      a: {class_path: DPO, init_args: {beta: 0.3}}\n      b: SimPO\n    weights: {b: 0.25}\n"
        "data:\n  sources: [{name: world}]\n"
    )
    with pytest.raises(SystemExit) as exit_:
        CLI(["--config", str(file), "--print_config"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert "class_path: upo.methods.DPO" in shown and "beta: 0.3" in shown and "b: 0.25" in shown
    assert shown.count("RMSprop") == 1, "one optimizer, not one a loss"
