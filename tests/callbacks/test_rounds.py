"""Multi-round DPO: merged adapters, a new reference and a fresh optimizer at the start of each round."""

import math

import pytest
import torch
from tiny import arrange, policy, units
from training import fit, flat, make, resumed_equals_uninterrupted

from upo.callbacks.reference_sync import follow
from upo.callbacks.rounds import Rounds, merge_adapters
from upo.callbacks.run_end import TrainedRun
from upo.methods import DPO
from upo.models.lora import LoRA
from upo.models.policy import Policy


def test_each_round_starts_where_the_first_did(tmp_path):
    watch = fit(make(DPO), tmp_path, Rounds(every=2)).watch
    for step in range(6):
        assert torch.equal(watch.references[step], watch.policies[step // 2 * 2]), step
    assert [watch.losses[s] for s in (0, 2, 4)] == pytest.approx([math.log(2)] * 3, abs=1e-5)


def test_the_optimizer_forgets(tmp_path):
    done = fit(make(DPO), tmp_path, Rounds(every=4), steps=6)
    assert {int(s["step"]) for s in done.trainer.optimizers[0].state.values()} == {2}


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    resumed_equals_uninterrupted(DPO, lambda: Rounds(2), tmp_path)


def test_after_training_the_reference_is_the_first_start_again(tmp_path):
    """Also what lies below an adapter, which a round has changed."""
    first = policy(max_position_embeddings=256)
    first.model.save_pretrained(tmp_path / "model")
    first.tokenizer.save_pretrained(tmp_path / "model")
    method = make(DPO, policy=Policy(path=str(tmp_path / "model"), adapter=LoRA(r=2)))
    method.configure_model()
    start, rounds = flat(method.reference.model), Rounds(every=2)
    done = fit(method, tmp_path, rounds, steps=4)
    assert not torch.equal(flat(method.reference.model), start)
    rounds.on_run_end(TrainedRun(method, done.data, tmp_path))
    assert torch.equal(flat(method.reference.model), start)


def test_without_adapters_nothing_is_merged():
    model = policy()
    before = flat(model)
    assert merge_adapters(model) == 0 and torch.equal(flat(model), before)


def test_merged_adapters_leave_the_model_as_it_was_and_start_afresh():
    peft = pytest.importorskip("peft")
    ours = policy(seed=1)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]), ours.model)
    reference = ours.frozen_copy()
    lora = {name: p for name, p in ours.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for parameter in lora.values():
            parameter.normal_(std=0.3)
    responses = arrange(units([(3, [4, 2]), (2, [1, 5])]))
    before = ours(responses)["logps"].detach()
    assert not torch.allclose(before, reference(responses)["logps"], atol=1e-2)
    assert merge_adapters(ours) == 4
    torch.testing.assert_close(ours(responses)["logps"].detach(), before, rtol=1e-4, atol=1e-4)
    assert all(not p.any() for name, p in lora.items() if "lora_B" in name)
    assert all(p.any() for name, p in lora.items() if "lora_A" in name)
    follow(reference, ours, 1.0)
    torch.testing.assert_close(reference(responses)["logps"], before, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for name, parameter in lora.items():
            if "lora_B" in name:
                parameter.normal_()
    assert not torch.allclose(ours(responses)["logps"], before, atol=1e-2), "the fresh adapter is active"
