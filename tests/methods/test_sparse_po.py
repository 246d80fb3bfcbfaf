"""SparsePO and MaPO: TDPO1 with a mask for each token."""

import math

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND
from tiny import arrange, batch_of, policy, units

from upo.data.views import PairedView
from upo.errors import UserError
from upo.methods.dpo import dpo_loss
from upo.methods.sparse_po import LearnedMasks, MaPO, SparsePO, activation_masks, sparse_po_loss
from upo.methods.tdpo import tdpo1_loss
from upo.models.reference import FrozenReference
from upo.models.stored_reference import StoredReference

CASES = {
    MaPO: Case(metrics={"kl/chosen", "kl/rejected", "masks/density", "masks/mean"}, defaults={"beta": 0.1}),
    SparsePO: Case(
        heads={"mask_head"},
        metrics={"kl/chosen", "kl/rejected", "masks/density", "masks/mean"},
        defaults={"beta": 0.1, "common_mask": True},
        not_in_loss={"mask_lr", "mask_weight_decay"},
    ),
}

WORK = units([(4, [6, 1]), (2, [3, 9]), (1, [1, 1])])


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values_with_masks_of_1_and_no_divergence(fixture):
    pi_w, ref_w, pi_l, ref_l = fixture
    loss = sparse_po_loss(t(pi_w - ref_w), t(pi_l - ref_l), t(0.0), t(0.0), beta=0.1)
    assert loss.item() == pytest.approx(0.403186, abs=5e-7)


def test_by_hand():
    """U = 0.1 (2 + 5) = 0.7, V = 0.1 (5 - 2) = 0.3: log(1 + exp(-0.4))."""
    assert sparse_po_loss(t(2.0), t(-5.0), t(2.0), t(5.0), beta=0.1).item() == pytest.approx(0.5130153)


def test_gradcheck_signs_and_finite_far_out():
    x = [v.requires_grad_() for v in 5 * torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).double()]
    assert torch.autograd.gradcheck(lambda *v: sparse_po_loss(*v, beta=0.1), x)
    signs = [g.sign().unique().tolist() for g in torch.autograd.grad(sparse_po_loss(*x, beta=0.1).sum(), x)]
    assert signs == [[-1], [1], [-1], [1]]
    for far in (1e4, -1e4, -1e-9):
        x = [torch.tensor([v, -v], requires_grad=True) for v in (far, -far, abs(far), 0.0)]
        loss = sparse_po_loss(*x, beta=0.1)
        assert loss.isfinite().all() and all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), x))


def test_learned_masks_by_hand():
    """Two layers: ReLU(1 - 3) = 0 and ReLU(1 + 1) = 2 give 1; weights of 0 give 1 everywhere."""
    masks = LearnedMasks(2, 3, 1)
    layers = torch.tensor([[[3.0, 0, 0], [0, 1.0, 0]], [[0.0, 5, 5], [9.0, 0, 9]]])
    assert masks(layers).tolist() == [[1.0, 1.0]]
    with torch.no_grad():
        masks.weight.copy_(torch.tensor([[[-1.0, 0, 0], [0, 1.0, 0]]]))
    assert masks(layers).tolist() == [[1.0, 1.0]]
    with torch.no_grad():
        masks.bias.fill_(-10.0)
    assert masks(layers).tolist() == [[0.0, 0.0]], "never negative"


def test_activation_masks_against_loops():
    layers = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0))
    row = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2])
    expected = []
    for i in range(9):
        parts = []
        for layer in range(3):
            mine = [layers[j, layer].mean().item() for j in range(9) if row[j] == row[i]]
            mean = sum(mine) / len(mine)
            spread = math.sqrt(sum((x - mean) ** 2 for x in mine) / len(mine))
            parts.append(1 / (1 + math.exp(-(layers[i, layer].mean().item() - mean) / (spread + 1e-6))))
        expected.append(sum(parts) / 3)
    masks = activation_masks(layers, row)
    assert masks.tolist() == pytest.approx(expected, rel=1e-4)
    assert masks[4].item() == 0.5, "a response of one token"
    assert masks.std() > 0.1


def method(kind: type[MaPO], **options):
    """With a policy that has moved."""
    made = kind(policy(dtype="float64"), FrozenReference(), **options)
    made.configure_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return made


def logps_of(made, layout="packed"):
    return made.response_logps(arrange(WORK, layout), made.needs)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_layers_are_those_of_hugging_face(layout):
    made = method(MaPO)
    got = logps_of(made, layout).reference_outputs["layers"]
    expected = []
    for unit in WORK:
        for response in unit.responses:
            ids = torch.tensor([unit.prompt + response])
            states = made.reference.model.model(input_ids=ids, output_hidden_states=True).hidden_states[1:]
            at = slice(len(unit.prompt) - 1, len(unit.prompt) + len(response) - 1)
            expected.append(torch.stack([x[0, at] for x in states], 1))
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-8, rtol=0)
    assert got.shape[1] == 2 and not got.requires_grad


def test_masks_of_1_are_tdpo1_and_without_divergence_dpo(monkeypatch):
    made = method(SparsePO)
    logps = logps_of(made)
    w, r = logps[0::2], logps[1::2]
    kl = [x.sums(x.outputs["kl"]) for x in (w, r)]
    torch.testing.assert_close(made.loss(w, r), tdpo1_loss(w.logratio, r.logratio, *kl, beta=0.1))

    def masks(of_reward, of_kl):
        monkeypatch.setattr(made, "masks", lambda x: [torch.full_like(x.outputs["kl"], m) for m in (of_reward, of_kl)])

    masks(1, 0)
    torch.testing.assert_close(made.loss(w, r), dpo_loss(w.logratio, r.logratio, beta=0.1))
    masks(0, 0)
    assert made.loss(w, r).tolist() == pytest.approx([math.log(2)] * 3), "all is masked: nothing to learn"


@pytest.mark.parametrize("common", [True, False])
def test_policy_and_masks_learn_and_the_reference_does_not(common):
    made = method(SparsePO, common_mask=common)
    logps = logps_of(made)
    made.loss(logps[0::2], logps[1::2]).sum().backward()
    assert made.mask_head.weight.shape[0] == (1 if common else 2)
    assert all(p.grad.any() for p in made.mask_head.parameters())
    assert made.mask_head.weight.grad.flatten(1).any(1).all(), "each mask by itself"
    assert all(p.grad is not None for p in made.policy.parameters())
    assert all(p.grad is None for p in made.reference.model.parameters())
    of_reward, of_kl = made.masks(logps)
    assert (of_reward is of_kl) or not common or torch.equal(of_reward, of_kl)


def test_a_reference_without_states_is_refused_by_a_sentence(tmp_path):
    with pytest.raises(
        UserError, match=r"needs .*layers.* of each token .*StoredReference provides only .*; set model"
    ):
        SparsePO(policy(), StoredReference(folder=str(tmp_path)))


def test_mapo_learns_no_mask():
    made = method(MaPO)
    logps = logps_of(made)
    of_reward, of_kl = made.masks(logps)
    assert not of_reward.requires_grad and torch.equal(of_reward, of_kl)
    assert len(made.parameter_groups()) == 1
    assert {n.split(".")[0] for n, _ in made.named_parameters()} == {"policy"}


@pytest.mark.parametrize("kind", [MaPO, SparsePO])
def test_margins_of_rewards_are_the_argument_of_the_sigmoid(kind):
    made = method(kind)
    logps = logps_of(made)
    reward = made.reward(logps)
    margin = -torch.nn.functional.logsigmoid(reward[0::2] - reward[1::2])
    torch.testing.assert_close(made.loss(logps[0::2], logps[1::2]), margin)
    made.update_metrics("train", batch_of(WORK, PairedView()), logps)
    assert 0 < made.compute_metrics("train")["masks/density"] <= 1
