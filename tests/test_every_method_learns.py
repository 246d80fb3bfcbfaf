"""What holds for every method: it learns eight pairs, trains the policy alone, leaves no reference in checkpoints."""

import every_method
import lightning.pytorch as pl
import pytest
import torch
from cases import case_of
from every_method import CORE, CORE_AND_THIRD, CORE_OR_SIXTH, LONG, SHORT, fit, metrics_of, reference_state, steps_of

from upo.data.layout import collate_responses
from upo.evaluation.measure import log_probs, rewards
from upo.methods.common.base import Method
from upo.methods.common.stepwise import CoupledLoss
from upo.models.checkpoint import model_from

pairs, run = every_method.pairs, every_method.run


@pytest.mark.parametrize("kind", CORE_OR_SIXTH)
def test_learns_eight_pairs(kind, run, pairs, tmp_path):
    rows = run(kind).rows if steps_of(kind) == LONG else fit(kind, pairs, tmp_path).rows
    assert len(rows) == LONG
    assert all(value == value for row in rows for value in row.values()), "no NaN"
    first, last = rows[0], rows[-1]
    case = case_of(kind)
    if case.falls is not None:
        start = rows[case.options.get("value_warmup_steps", 0)]
        assert last[f"train/{case.falls}"] < 0.7 * start[f"train/{case.falls}"]
    elif "train/rewards/accuracies" in last:
        name = "train/loss/preference" if "train/loss/preference" in last else "train/loss"
        assert last[name] < (0.7 * first[name] if kind.__name__ in CORE else first[name])
        assert last["train/rewards/accuracies"] == 1.0
        assert last["train/rewards/margins"] > (0.5 if kind.__name__ in CORE else 0)
    else:
        assert last["train/loss"] < 0.5 * first["train/loss"]


@pytest.mark.parametrize("kind", CORE_AND_THIRD)
def test_several_micro_batches_make_a_step(kind, run):
    done = run(kind)
    (step,) = done.data.train_dataloader()
    assert len(step.micro_batches) > 1 and step.counts["prompts"] == len(done.data.train)
    assert len(done.data.train) == 8 or case_of(kind).data
    assert done.trainer.global_step == steps_of(kind)


@pytest.mark.parametrize("kind", CORE_AND_THIRD)
def test_loss_before_the_first_update(kind, run):
    first = run(kind).rows[0]
    if kind.initial_loss is not None:
        name = "train/loss/preference" if "train/loss/preference" in first else "train/loss"
        assert first[name] == pytest.approx(kind.initial_loss, abs=1e-5)
        assert first["train/rewards/margins"] == pytest.approx(0, abs=1e-5)
    if "train/kl" in first:
        assert first["train/kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kind", CORE_AND_THIRD)
def test_only_policy_and_heads_learn_and_the_reference_stays(kind, run):
    done = run(kind)
    everything = {name for name, _ in done.method.named_parameters()}
    assert {name.split(".")[0] for name in everything} == {"policy", *case_of(kind).heads}
    assert done.watch.with_gradient == everything
    assert done.watch.moved - {name for name, _ in done.method.named_buffers()} == everything
    for name, tensor in reference_state(done.method).items():
        assert torch.equal(tensor, done.watch.reference[name])
        assert torch.equal(tensor, done.watch.before["policy." + name]), "a copy of the policy as it began"
    if done.method.reference is not None:
        assert all(p.grad is None and not p.requires_grad for p in done.method.reference.model.parameters())


@pytest.mark.parametrize("kind", CORE_AND_THIRD)
def test_metrics_have_their_names(kind, run):
    assert set(run(kind).rows[-1]) == {f"train/{name}" for name in metrics_of(kind) | {"loss", "grad_norm", "lr"}}


@pytest.mark.parametrize("kind", CORE_AND_THIRD)
def test_a_checkpoint_is_plain_and_holds_no_reference(kind, run):
    done = run(kind)
    content = torch.load(done.file, weights_only=True)
    assert not [name for name in content["state_dict"] if "reference" in name]
    trained = sum(p.numel() * p.element_size() for p in done.method.parameters())
    texts = sum(map(len, content["policy_files"].values()))
    assert done.file.stat().st_size < 3.2 * trained + texts + 50_000, "parameters, AdamW's two moments, the tokenizer"
    model, tokenizer = model_from(content, done.file)
    for name, tensor in done.method.policy.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert tokenizer("hello there").input_ids == done.method.policy.tokenizer("hello there").input_ids


@pytest.mark.parametrize("kind", CORE_AND_THIRD)
def test_validation_is_the_mean_over_everything_however_it_is_cut(kind, run):
    """Eight pairs in one step and in steps of three, three and two, whose responses differ in length."""
    done = run(kind)
    done.data.val, options = done.data.train, {"enable_checkpointing": False, "enable_progress_bar": False}
    values = []
    everything = done.data.pairs_per_step
    for done.data.pairs_per_step in (everything, 3):
        trainer = pl.Trainer(accelerator="cpu", logger=False, **options)
        values += trainer.validate(done.method, done.data, verbose=False)
    done.data.pairs_per_step = everything
    whole, cut = values
    assert set(whole) == {f"val/{name}" for name in metrics_of(kind) | {"loss"}}
    of_steps = {n for n in whole if n.startswith(("val/kl", "val/advantages/"))}  # what belongs to a step
    if of_steps or issubclass(kind, CoupledLoss):
        of_steps |= {"val/loss", "val/loss/preference"}
    of_steps |= {f"val/{name}" for name in case_of(kind).step_metrics}
    for name in set(whole) - of_steps:
        assert whole[name] == pytest.approx(cut[name], rel=1e-4), name
    if "val/rewards/accuracies" in whole:
        assert whole["val/rewards/accuracies"] == 1.0 or steps_of(kind) == SHORT
    elif "val/nll_per_token" in whole:
        assert whole["val/loss"] == pytest.approx(whole["val/nll_per_token"], rel=1e-5)


@pytest.mark.parametrize("kind", [x for x in CORE_AND_THIRD if x.values[0].reward is not Method.reward])
def test_evaluation_knows_the_reward(kind, run):
    """By log-probs of its own, as `upo.evaluate` and `upo.evaluation.implicit` take them."""
    done = run(kind)
    method, data, units = done.method, done.data, done.data.train.units[:4]
    reference = method.reference and method.reference.load_model()
    known = log_probs(method.policy, reference, units, data, "")
    groups = [unit.groups[0] for unit in units]
    responses = collate_responses(groups, data.layout, row_tokens=data.tokens_per_microbatch, pad_id=0)
    with torch.no_grad():
        expected = method.reward(method.response_logps(responses, method.needs))
    torch.testing.assert_close(rewards(method, known, units, data), expected.float(), rtol=1e-4, atol=1e-5)
