"""CSFT: where the control token stands, that it costs no loss, embeddings that grow, generation behind the good one."""

import json

import pytest
import torch
from cases import Case
from tiny import PAIRS, arrange, batch_of, examples_of, plain_logps, policy, tokenizer
from training import fit, pairs_file

from upo.data.control import control_ids, never_written
from upo.data.example import Example, Response
from upo.data.module import PreferenceData
from upo.data.report import DataReport
from upo.data.source import Source
from upo.data.tokenize import Encoder
from upo.data.units import Unit
from upo.evaluate import evaluate
from upo.evaluation.measure import log_probs
from upo.methods import CSFT, SFT
from upo.methods.csft import BAD, GOOD, ControlledView
from upo.models.checkpoint import load_model
from upo.models.export import export
from upo.models.head import grow
from upo.models.policy import Policy
from upo.rollout.sampling import sample

CASES = {
    CSFT: Case(
        data={"pairs_per_step": 16, "tokens_per_microbatch": 300},  # its units are single responses
        metrics={"nll_per_token", "nll_per_token/bad", "nll_per_token/good"},
    ),
}

CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 48, "max_position_embeddings": 256, "initializer_range": 0.2}


def make(kind=CSFT, **options):
    torch.manual_seed(0)
    return kind(
        Policy(**{"config": CONFIG, "tokenizer": "tiny.tokenizer"} | options),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
    )


def encoder() -> Encoder:
    return Encoder(make().policy.tokenizer)


def test_each_response_stands_behind_its_own_token():
    """Prompt, control token, response: the token is the prompt's last one, and no target."""
    example = Example("Name a colour:", (Response(" Green.", rank=0), Response(" Seven.", rank=1)))
    views = examples_of(ControlledView(), example, 9)
    assert [(v.control, v.responses[0].text) for v in views] == [(GOOD, " Green."), (BAD, " Seven.")]
    enc = encoder()
    good, bad = enc.encode(views, DataReport())
    (plain,) = Encoder(tokenizer()).encode([Example("Name a colour:", (Response(" Green."),))], DataReport())
    ids = enc.tokenizer.convert_tokens_to_ids([GOOD, BAD])
    assert good.prompt == [*plain.prompt, ids[0]] and bad.prompt == [*plain.prompt, ids[1]]
    assert good.responses == plain.responses
    assert not {*ids} & {t for u in (good, bad) for t in u.responses[0]}
    batch = batch_of([good, bad], ControlledView())
    assert batch.preferred.tolist() == [True, False]
    assert batch.responses.input_ids.flatten()[batch.responses.prompt_end].tolist() == ids


def test_labels_decide_where_there_are_labels():
    example = Example("x", tuple(Response(t, desirable=t == "b") for t in "abc"))
    assert [v.control for v in examples_of(ControlledView(), example, 9)] == [BAD, GOOD, BAD]
    assert examples_of(ControlledView(), Example("x", (Response("a"),)), 9) == []


def test_the_loss_is_cross_entropy_of_the_response_behind_the_token():
    method = make()
    method.configure_model()
    enc = Encoder(method.policy.tokenizer)
    views = examples_of(
        ControlledView(), Example("Sky is", (Response(" blue", rank=0), Response(" a fish", rank=1))), 9
    )
    units = enc.encode(views, DataReport())
    batch = batch_of(units, ControlledView())
    logps = method.response_logps(batch.responses)
    (term,) = method.terms(batch, logps, {}).values()
    assert term.mean_over == "tokens"
    for unit, value in zip(units, term.values.tolist(), strict=True):
        expected = -plain_logps(method.policy, unit.prompt, unit.responses[0]).sum().item()
        assert value == pytest.approx(expected, rel=1e-5)


def test_only_good_data_is_sft_with_a_constant_end_of_the_prompt():
    """The same weights, the same data with the token spelled in the prompts."""
    method, plain = make(), make(SFT)
    for m in (method, plain):
        m.policy.controls = (GOOD, BAD)
        m.configure_model()
    plain.policy.load_state_dict(method.policy.state_dict())
    enc = Encoder(method.policy.tokenizer)
    example = Example("Say hello.", (Response(" Hello!", desirable=True),))
    losses = []
    for m, view in (
        (method, examples_of(ControlledView(), example, 9)[0]),
        (plain, examples_of(SFT.view, example, 9)[0]),
    ):
        (unit,) = enc.encode([view], DataReport())  # generation's own token where a view has none: the good one
        batch = batch_of([unit], m.view)
        losses.append(m.terms(batch, m.response_logps(batch.responses), {})["nll"].values.item())
    assert losses[0] == losses[1]


# ---- embeddings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma", "phi"])
def test_new_embeddings_are_the_mean_of_the_old(kind):
    """Input and output, tied (Gemma) or not, with a bias in the head (Phi); what was there stays."""
    made = policy(kind)
    before = {n: x.clone() for n, x in made.model.state_dict().items()}
    unit = Unit.of([5, 9, 7], ([11, 3, 2],), Example("x", (Response("y"),)))
    hidden = made(arrange([unit]), ("hidden",))["hidden"]
    rows = len(before["model.embed_tokens.weight"])
    state = torch.get_rng_state()
    for size in (rows + 2, rows):  # the second asks for nothing
        torch.set_rng_state(state)
        grow(made.model, size)
    assert made.model.config.vocab_size == rows + 2
    embeddings = {n: x for n, x in made.model.state_dict().items() if len(x) == rows + 2}
    assert embeddings.keys() >= {"model.embed_tokens.weight", "lm_head.weight"}
    for name, x in embeddings.items():
        assert torch.equal(x[:rows], before[name])
        torch.testing.assert_close(x[rows:], before[name].mean(0).expand_as(x[rows:]))
    torch.testing.assert_close(made(arrange([unit]), ("hidden",))["hidden"], hidden)


def test_unused_embeddings_are_taken_first():
    """A model with more embeddings than its tokenizer has tokens does not grow."""
    method = make(config={**CONFIG, "vocab_size": 400})
    method.configure_model()
    assert method.policy.model.get_input_embeddings().weight.shape[0] == 400
    short = make(config={**CONFIG, "vocab_size": len(tokenizer())})
    short.configure_model()
    assert short.policy.model.get_input_embeddings().weight.shape[0] == len(tokenizer()) + 2


def test_a_policy_that_has_the_tokens_already_keeps_them(tmp_path):
    method = make()
    method.configure_model()
    method.policy.model.save_pretrained(tmp_path)
    method.policy.tokenizer.save_pretrained(tmp_path)
    again = make(path=str(tmp_path), config=None, tokenizer=None)
    again.configure_model()
    assert again.policy.tokenizer.get_vocab() == method.policy.tokenizer.get_vocab()
    for a, b in zip(again.policy.parameters(), method.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    other = Policy(path=str(tmp_path))
    assert control_ids(other.tokenizer) == control_ids(method.policy.tokenizer) != [], "also for other methods"


# ---- generation ----------------------------------------------------------------------------------------------------


def seen(model, tok) -> list[int]:
    ((written,),) = sample(model, tok, ["Name a colour:"], max_new_tokens=4, top_p=1.0)
    return written.prompt_ids


def run(tmp_path):
    """A short run and what the command line leaves of it: a configuration and a checkpoint."""
    done, folder = fit(make(), tmp_path, steps=1), tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    done.trainer.save_checkpoint(folder / "checkpoints" / "step=1.ckpt")
    config = {
        "model": {"class_path": "CSFT", "init_args": {"policy": {"config": CONFIG, "tokenizer": "tiny.tokenizer"}}},
        "data": {"sources": [{"name": "hh", "path": pairs_file(tmp_path)}], "validation": 2, "max_length": 200},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def test_checkpoint_and_export_generate_behind_the_good_token(tmp_path):
    folder = run(tmp_path)
    export(folder, tmp_path / "out")
    plain = Encoder(tokenizer()).prompts(["Name a colour:"])[0]
    for place in (folder, tmp_path / "out"):
        model, tok = load_model(place)
        good = tok.convert_tokens_to_ids(GOOD)
        assert seen(model, tok) == [*plain, good]
        assert tok.decode([good, *plain], skip_special_tokens=True) == "Name a colour:", "a special token"
    # evaluation against a model that knows no control tokens
    torch.manual_seed(0)
    start = make(SFT)
    start.configure_model()
    start.policy.model.save_pretrained(tmp_path / "start")
    start.policy.tokenizer.save_pretrained(tmp_path / "start")
    figures = evaluate(
        str(folder), trust=True, out=tmp_path / "eval", reference=str(tmp_path / "start"), max_new_tokens=4, prompts=2
    )
    assert 0 < figures["policy/kl"] < float("inf"), "though one model has two tokens more"
    assert "reference/tokens" in figures and "val/ranking/accuracies" in figures


def test_no_response_holds_a_control_token(tmp_path):
    """Though the model would write nothing else, also when it was loaded again."""
    model, tok = load_model(run(tmp_path))
    ids = tok.convert_tokens_to_ids([GOOD, BAD])
    assert set(ids) <= set(never_written(tok)) and tok.eos_token_id not in never_written(tok)
    with torch.no_grad():
        model.get_output_embeddings().weight[ids] *= 1000
    written = [s for group in sample(model, tok, ["Name a colour:"] * 20, max_new_tokens=8, top_p=1.0) for s in group]
    assert not any(set(never_written(tok)) & set(s.ids) for s in written)
    assert len({tuple(s.ids) for s in written}) > 10


def test_each_reads_its_own_token_in_log_probs():
    """The policy behind the good token, a reference without any: against sequences alone."""
    method, other = make(), make(SFT)
    method.configure_model()
    other.configure_model()
    data = PreferenceData((Source("hh", path="x"),))
    enc = Encoder(method.policy.tokenizer)
    units = enc.encode([Example("Sky is", (Response(" blue"), Response(" a fish")))], DataReport())
    got = log_probs(method.policy, other.policy, units, data, "")
    good = control_ids(method.policy.tokenizer)
    assert units[0].prompt[-1:] == good
    for k in (0, 1):
        ours = plain_logps(method.policy, units[0].prompt, units[0].responses[k]).sum()
        theirs = plain_logps(other.policy, units[0].prompt[:-1], units[0].responses[k]).sum()
        assert got.logps[k].item() == pytest.approx(ours.item(), abs=1e-4)
        assert got.reference_logps[k].item() == pytest.approx(theirs.item(), abs=1e-4)


def test_the_token_decides_after_training(tmp_path):
    """Chosen responses are all alike, rejected ones too: what begins a response hangs on the token alone."""
    head, file = "\n\nHuman: {}\n\nAssistant: {}", tmp_path / "alike.jsonl"
    rows = [{"chosen": head.format(p, "Yes."), "rejected": head.format(p, "No.")} for p, _, _ in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = fit(make(), tmp_path, steps=30, pairs=str(file), pairs_per_step=16)
    units = done.data.train.units
    swapped = [Unit.of([*u.prompt[:-1], units[i ^ 1].prompt[-1]], u.responses, u.example) for i, u in enumerate(units)]
    with torch.no_grad():
        own, other = (done.method.policy(arrange(w))["logps"] for w in (units, swapped))
    assert (own > other + 1).all()
