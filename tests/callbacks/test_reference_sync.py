"""TR-DPO: the reference follows the policy, softly or at once, and survives a kill."""

import math

import pytest
import torch
from tiny import policy
from training import Watch, fit, flat, make, resumed_equals_uninterrupted

from upo.callbacks.reference_sync import ReferenceSync, follow
from upo.callbacks.run_end import TrainedRun
from upo.errors import UserError
from upo.methods import DPO, KTO, SFT

pytestmark = pytest.mark.turns(2)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.6, 1.0])
def test_alpha_weights_the_policy(alpha):
    ours, theirs = policy(seed=1), policy(seed=2)
    before, new = flat(ours), flat(theirs)
    follow(ours, theirs, alpha)
    torch.testing.assert_close(flat(ours), alpha * new + (1 - alpha) * before)
    assert torch.equal(flat(theirs), new)
    if alpha in (0.0, 1.0):
        assert torch.equal(flat(ours), new if alpha else before)


def test_tied_weights_move_once():
    ours, theirs = policy(seed=1, tie_word_embeddings=True), policy(seed=2, tie_word_embeddings=True)
    head, embedding = ours.model.get_output_embeddings().weight, ours.model.get_input_embeddings().weight
    expected = 0.5 * (embedding + theirs.model.get_input_embeddings().weight).detach()
    follow(ours, theirs, 0.5)
    assert head is embedding
    torch.testing.assert_close(embedding.detach(), expected)


def test_another_architecture_is_refused():
    with pytest.raises(UserError, match="another architecture"):
        follow(policy(), policy(intermediate_size=40), 0.5)


@pytest.mark.parametrize(("alpha", "every"), [(0.6, 2), (1.0, 3)])
def test_the_reference_of_each_step(alpha, every, tmp_path):
    watch = fit(make(DPO), tmp_path, ReferenceSync(alpha, every)).watch
    reference = watch.policies[0]
    for step in range(6):
        if step and step % every == 0:
            reference = torch.lerp(reference, watch.policies[step], alpha)
        assert torch.equal(watch.references[step], reference), step
    assert not torch.equal(watch.references[5], watch.references[0])


@pytest.mark.parametrize("kind", [DPO, KTO])
def test_replaced_before_each_step_the_loss_stays_where_it_began(kind, tmp_path):
    watch = fit(make(kind), tmp_path, ReferenceSync(alpha=1.0, every=1)).watch
    start = math.log(2) if kind is DPO else 0.5
    assert list(watch.losses.values()) == pytest.approx([start] * 6, abs=1e-5)
    assert fit(make(kind), tmp_path).watch.losses[5] < start - 1e-3, "a fixed reference would show"


@pytest.mark.parametrize("options", [{"alpha": 0.0, "every": 1}, {"alpha": 1.0, "every": 1000}])
def test_never_moved_is_the_plain_method(options, tmp_path):
    plain, ours = fit(make(DPO), tmp_path), fit(make(DPO), tmp_path, ReferenceSync(**options))
    assert plain.watch.losses == ours.watch.losses


@pytest.mark.parametrize(("alpha", "every"), [(0.6, 2), (1.0, 3)])
def test_killed_and_resumed_equals_uninterrupted(alpha, every, tmp_path):
    """Saved between two updates and right before one."""
    resumed_equals_uninterrupted(DPO, lambda: ReferenceSync(alpha, every), tmp_path)


def test_rewinding_brings_back_the_start_also_after_a_resume(tmp_path):
    start = flat(fit(make(DPO), tmp_path, steps=0).method.reference.model)
    for ckpt in (None, str(tmp_path / "step=3.ckpt")):
        sync = ReferenceSync(0.6)
        done = fit(make(DPO), tmp_path, sync, save_every=3, ckpt_path=ckpt)
        assert not torch.equal(flat(done.method.reference.model), start)
        sync.on_run_end(TrainedRun(done.method, done.data, tmp_path))
        assert torch.equal(flat(done.method.reference.model), start)


def test_neither_a_missing_nor_a_stored_reference_can_move(tmp_path):
    with pytest.raises(UserError, match="ReferenceSync moves the reference, and SFT has none; remove the callback"):
        fit(make(SFT), tmp_path, ReferenceSync())

    class Stored(Watch):
        def on_train_batch_start(self, trainer, pl_module, batch, _):
            for b in batch.micro_batches:
                object.__setattr__(b.responses, "reference_logps", torch.zeros(len(b.responses.lengths)))

    with pytest.raises(UserError, match="stored"):
        fit(make(DPO), tmp_path, Stored(), ReferenceSync())


def test_gradients_never_reach_the_reference(tmp_path):
    done = fit(make(DPO), tmp_path, ReferenceSync(0.6))
    assert all(p.grad is None and not p.requires_grad for p in done.method.reference.model.parameters())
    assert not [name for name in done.method.state_dict() if "reference" in name]
