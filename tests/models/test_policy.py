"""Log-probs: packed = padded = one sequence at a time through Hugging Face, in value and in gradient."""

import copy
import warnings

import pytest
import torch
from attrs import evolve
from tiny import SHAPES, arrange, groups_of, plain_logps, policy, tokenizer, units
from torch.nn.functional import layer_norm, rms_norm

from upo.data.control import control_of
from upo.data.layout import Responses, collate_responses
from upo.data.report import DataReport
from upo.data.source import Source
from upo.data.tokenize import Encoder, Limits, truncate
from upo.data.units import Group, Unit
from upo.errors import UserError
from upo.models.logps import AXIS
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

LAYOUTS = ("packed", "padded")
WORK = units([(3, [9, 2]), (5, [1]), (1, [4, 14, 7, 1, 2]), (20, [2, 3]), (1, [1]), (7, [1, 1, 6])])
"""K = 1, 2, 3, 5; prompts of one token, responses of one token, several units in a row."""

SINGLE = 16 * torch.finfo(torch.float32).eps
"""What float64 models may be off whose code computes a part in float32 (Bloom's softmax, Cohere's rotation): how that
rounds depends on the machine; over 12 seeds Bloom's log-probs were up to 1.5 times float32's precision apart."""


def alone(model: Policy, work: list[Unit]) -> torch.Tensor:
    """Log-probs of all response tokens, in the order of `targets`."""
    return torch.cat([plain_logps(model, u.prompt, r) for u in work for r in u.responses])


def sums(token_logps: torch.Tensor, responses: Responses) -> list[float]:
    return [token_logps[responses.response_index == n].sum().item() for n in range(len(responses.lengths))]


def gradients(model: Policy, value: torch.Tensor) -> torch.Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


def weighted(logps: torch.Tensor) -> torch.Tensor:
    """A sum in which every response has its own weight, so that mixed-up rows show."""
    return (logps * torch.linspace(-1, 2, len(logps), dtype=logps.dtype)).sum()


def exact(model: Policy) -> Policy:
    """transformers' norms work in float32 inside, whatever the dtype: 1e-7 in the gradients."""
    for module in model.modules():
        name = type(module).__name__
        if name.startswith("Gemma") and name.endswith("RMSNorm"):
            module.forward = lambda x, m=module: rms_norm(x, x.shape[-1:], 1 + m.weight, m.eps)
        elif name.endswith("RMSNorm"):
            module.forward = lambda x, m=module: rms_norm(x, x.shape[-1:], m.weight, m.variance_epsilon)
        elif name == "CohereLayerNorm":
            module.forward = lambda x, m=module: layer_norm(x, x.shape[-1:], m.weight, eps=m.variance_epsilon)
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_architecture_agrees_with_hugging_face(kind, layout):
    """In float64 1e-10 a token; gradients 1e-9 of their norm."""
    model = exact(policy(kind, "float64"))
    responses = arrange(WORK, layout)
    out = model(responses, ("token_logps",))
    expected = alone(model, WORK)
    assert expected.std() > 0.5, "the random model is far from uniform"
    torch.testing.assert_close(out["token_logps"], expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(out["logps"], torch.tensor(sums(expected, responses), dtype=torch.float64))
    plain = torch.stack([expected[responses.response_index == n].sum() for n in range(len(responses.lengths))])
    ours, theirs = gradients(model, weighted(out["logps"])), gradients(model, weighted(plain))
    assert (ours - theirs).norm() < (SINGLE if kind == "cohere" else 1e-9) * theirs.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SHAPES)
def test_in_fp32(kind, layout):
    model = policy(kind)
    out = model(arrange(WORK, layout), ("token_logps",))
    expected = alone(model, WORK)
    torch.testing.assert_close(out["token_logps"], expected, atol=5e-5, rtol=0)
    twin = "padded" if layout == "packed" else "packed"
    a, b = (
        gradients(model, weighted(out["logps"])),
        gradients(model, weighted(model(arrange(WORK, twin))["logps"])),
    )
    assert (a - b).norm() < 1e-4 * b.norm()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_k_responses_of_one_length_each(count):
    model = policy(dtype="float64")
    work = units([(4, [6] * count), (2, [1] * count)])
    for layout in LAYOUTS:
        out = model(arrange(work, layout), ("token_logps",))["token_logps"]
        torch.testing.assert_close(out, alone(model, work), atol=1e-10, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_units_and_responses_does_not_matter(layout):
    model = policy(dtype="float64")
    straight = model(arrange(WORK, layout), ("prompt_hidden",))
    order = [3, 0, 5, 2, 4, 1]
    turned = [Unit.of(WORK[i].prompt, WORK[i].responses[::-1], WORK[i].example) for i in order]
    out = model(arrange(turned, layout), ("prompt_hidden",))
    ends = torch.tensor([len(u.responses) for u in WORK]).cumsum(0).tolist()
    by_unit = [straight["logps"][e - len(u.responses) : e] for e, u in zip(ends, WORK, strict=True)]
    torch.testing.assert_close(out["logps"], torch.cat([by_unit[i].flip(0) for i in order]), atol=1e-10, rtol=0)
    torch.testing.assert_close(out["prompt_hidden"], straight["prompt_hidden"][order], atol=1e-10, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row_tokens", [1, 30, 64, 10_000])
def test_neither_the_width_of_rows_nor_the_id_of_padding_matters(row_tokens, layout):
    """Also where padding is EOS, which stands in the responses as well."""
    model = policy(dtype="float64")
    expected = model(arrange(WORK))["logps"]
    for pad_id in (0, 2, WORK[0].responses[0][-1]):
        got = model(collate_responses(groups_of(WORK), layout, row_tokens=row_tokens, pad_id=pad_id))["logps"]
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


def test_a_response_sees_neither_its_neighbours_nor_other_prompts():
    """Changing one response changes its own log-prob alone."""
    model = policy(dtype="float64")
    before = model(arrange(WORK))["logps"]
    changed = copy.copy(WORK)
    changed[2] = Unit.of(WORK[2].prompt, (WORK[2].responses[0], [9, 8, 7, 6], *WORK[2].responses[2:]), WORK[2].example)
    moved = (model(arrange(changed))["logps"] - before).abs() > 1e-10
    assert moved.nonzero().flatten().tolist() == [4]


def test_prompt_hidden_is_the_last_state_of_the_prompt_alone():
    model = policy(dtype="float64")
    for layout in LAYOUTS:
        hidden = model(arrange(WORK, layout), ("prompt_hidden",))["prompt_hidden"]
        for u, state in zip(WORK, hidden, strict=True):
            expected = model.model.base_model(input_ids=torch.tensor([u.prompt])).last_hidden_state[0, -1]
            torch.testing.assert_close(state, expected, atol=1e-10, rtol=0)


def test_bf16_log_probs_are_fp32_and_near():
    model = policy(dtype="bfloat16")
    wide = copy.deepcopy(model).double()
    out = model(arrange(WORK), ("token_logps",))
    assert out["logps"].dtype == out["token_logps"].dtype == torch.float32
    error = (out["token_logps"] - alone(wide, WORK)).abs()
    assert 1e-4 < error.mean() < 0.1


def test_autocast_computes_in_bf16_and_sums_in_fp32():
    model = policy()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(arrange(WORK), ("token_logps",))
    assert out["token_logps"].dtype == torch.float32
    error = (out["token_logps"] - alone(model, WORK)).abs()
    assert 1e-4 < error.mean() < 0.1
    assert gradients(model, out["logps"].sum()).isfinite().all()


# ---- real data -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hh(shared, stories260k) -> list[Unit]:
    """Pairs as an experiment has them, cut where they are too long."""
    source = Source("hh", local=str(shared / "data/hh/helpful-base.test.jsonl.gz"), limit=24)
    report = DataReport()
    encoder = Encoder(Policy(path=stories260k).tokenizer)
    overlong = ["truncate_prompt_left", "truncate_response"]
    limits = Limits(512, 256, overlong, encoder.bos)
    units = [truncate(t, limits, report) for t in encoder.encode(source.examples(report), report) if t]
    assert all(units) and report.sources["hh"].altered["prompt cut on the left"] > 0
    return units[:16]


@pytest.fixture(scope="module")
def stories(stories260k) -> Policy:
    made = Policy(path=stories260k)
    made.build()
    return made


def test_real_pairs_under_a_real_model(hh, stories):
    with torch.no_grad():
        expected = alone(stories, hh)
        for layout in LAYOUTS:
            responses = collate_responses(groups_of(hh), layout, row_tokens=1024, pad_id=2)
            out = stories(responses, ("token_logps",))
            torch.testing.assert_close(out["token_logps"], expected, atol=5e-5, rtol=0)
            torch.testing.assert_close(
                out["logps"], torch.tensor(sums(expected.double(), responses)).float(), atol=1e-4, rtol=1e-6
            )
    assert -1e4 < out["logps"].min() < -100, "long responses are among them"


def test_real_gradients(hh, stories):
    few = sorted(hh, key=lambda u: u.cost)[4:8]
    a, b = (gradients(stories, stories(arrange(few, layout))["logps"].mean()) for layout in LAYOUTS)
    theirs = gradients(stories, alone(stories, few).sum() / 8)
    assert (a - b).norm() < 1e-4 * b.norm()
    assert (a - theirs).norm() < 1e-4 * theirs.norm()


def test_real_pairs_in_float64(hh, stories260k):
    model = Policy(path=stories260k, dtype="float64")
    model.build()
    few = hh[:3]
    with torch.no_grad():
        expected = alone(model, few)
        for layout in LAYOUTS:
            out = model(arrange(few, layout), ("token_logps",))["token_logps"]
            torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)


# ---- the object ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
def test_dropout_is_off_whatever_the_config_says(kind):
    names = {
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "gpt_neox": ("hidden_dropout", "attention_dropout"),
    }.get(kind, ("attention_dropout",))
    model = policy(kind, **dict.fromkeys(names, 0.5)).train()
    a, b = (model(arrange(WORK))["logps"] for _ in range(2))
    assert torch.equal(a, b)


def test_a_frozen_copy_stays_as_it_was():
    model = policy()
    reference = FrozenReference()
    reference.build(model)
    before = reference.logps(arrange(WORK))
    torch.testing.assert_close(before, model(arrange(WORK))["logps"], atol=0, rtol=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    assert torch.equal(reference.logps(arrange(WORK)), before)
    assert not torch.allclose(model(arrange(WORK))["logps"], before)
    assert not before.requires_grad and not any(p.requires_grad for p in reference.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_reference_of_its_own(stories260k, stories):
    reference = FrozenReference(stories260k)
    reference.build(stories)
    assert reference.starts_as_policy, "it is the policy's own start, which is checked before the first step"
    torch.testing.assert_close(reference.logps(arrange(WORK)), stories(arrange(WORK))["logps"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either policy.path"),
        ({"path": "a", "config": {}}, "either policy.path"),
        ({"config": {"model_type": "llama"}}, "policy.tokenizer"),
    ],
)
def test_what_must_be_given(fields, message):
    with pytest.raises(UserError, match=message):
        Policy(**fields)


def test_tokenizer_and_model_must_belong_together():
    with pytest.raises(UserError, match="belong together"):
        policy(vocab_size=100)


def test_a_sliding_window_is_padded_once_it_matters():
    model = policy("mistral", "float64", sliding_window=6)
    short = units([(3, [2, 4]), (5, [2])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for work, layout in ((short, "packed"), (short, "padded"), (WORK, "padded")):
            out = model(arrange(work, layout), ("token_logps",))["token_logps"]
            torch.testing.assert_close(out, alone(model, work), atol=1e-10, rtol=0)
    with pytest.warns(UserWarning, match="up to 6 tokens"):
        out = model(arrange(WORK), ("token_logps",))["token_logps"]
    torch.testing.assert_close(out, alone(model, WORK), atol=1e-10, rtol=0)
    assert policy("qwen2", sliding_window=6, use_sliding_window=False).packable is None


@pytest.mark.parametrize(
    ("kind", "shape", "tolerance"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}, 1e-10),
        ("bloom", {"n_head": 4}, SINGLE),
    ],
)
def test_other_layers_than_attention_under_a_mask_are_padded(kind, shape, tolerance):
    """Convolutions, and attention of a model's own."""
    model = policy(kind, "float64", **shape)
    with pytest.warns(UserWarning, match="what is longer is padded"):
        packed = model(arrange(WORK), ("token_logps", "prompt_hidden"))
    out = model(arrange(WORK, "padded"), ("token_logps", "prompt_hidden"))
    torch.testing.assert_close(out["token_logps"], alone(model, WORK), atol=tolerance, rtol=0)
    for name, values in out.items():
        assert torch.equal(packed[name], values)


def test_a_model_that_does_not_ask_for_the_packed_attention_is_refused():
    """Under a mask that nobody reads its tokens would see other responses."""
    model = policy()
    model.model.set_attn_implementation("eager")
    with pytest.raises(UserError, match=r"llama did not call .* set data\.layout: padded"):
        model(arrange(WORK))
    model(arrange(WORK, "padded"))


def test_a_divergence_needs_a_reference():
    with pytest.raises(UserError, match="kl is a divergence from a reference"):
        policy()(arrange(WORK), ("kl",))


def test_other_weights_under_the_same_settings():
    """Nothing is shared but what is handed over."""
    ours, theirs = policy(), policy(seed=1)
    made = ours.with_model(theirs.model)
    assert made.model is theirs.model and made.tokenizer is ours.tokenizer and made.config == ours.config
    assert torch.equal(made(arrange(WORK))["logps"], theirs(arrange(WORK))["logps"])
    assert not torch.equal(ours(arrange(WORK))["logps"], made(arrange(WORK))["logps"])
    other = tokenizer()
    assert ours.with_model(theirs.model, other).tokenizer is other is not ours.tokenizer


def test_capped_scores_are_those_of_hugging_face():
    """Gemma 2 caps its attention's scores, which its own eager attention knows."""
    model = policy("gemma2", "float64")
    ours = [model(arrange(WORK, layout), ("token_logps",))["token_logps"] for layout in LAYOUTS]
    model.model.set_attn_implementation("eager")
    theirs = alone(model, WORK)
    for out in ours:
        torch.testing.assert_close(out, theirs, atol=2e-6, rtol=0)  # its softmax is fp32
    model.model.config.attn_logit_softcapping = None
    for layer in model.model.base_model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert not torch.allclose(alone(model, WORK), theirs, atol=1e-2), "the cap matters"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no model at"):
        Policy(path=str(tmp_path / "nothing"), tokenizer="tiny.tokenizer").build()
    with pytest.raises(UserError, match="no tokenizer at"):
        _ = Policy(path=str(tmp_path / "nothing")).tokenizer


def test_an_unknown_architecture():
    with pytest.raises(UserError, match=r"policy\.config"):
        Policy(config={"model_type": "lama"}, tokenizer="tiny.tokenizer").build()


def test_files_make_a_model_folder(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    model = policy()
    for name, content in model.files().items():
        (tmp_path / name).write_bytes(content)
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 32
    assert AutoTokenizer.from_pretrained(tmp_path)("hello").input_ids == tokenizer()("hello").input_ids


def test_control_tokens_come_before_the_tokenizer_is_read():
    made = Policy(path="nowhere", tokenizer="tiny.tokenizer")
    made.take_controls(())
    made.take_controls(("<|a|>", "<|b|>"))
    assert control_of(made.tokenizer) == "<|a|>" and "<|b|>" in made.tokenizer.get_vocab()
    made.take_controls(("<|b|>",))
    assert made.controls == ("<|a|>", "<|b|>"), "known ones may be asked for again"
    with pytest.raises(UserError, match=r"<\|c\|> come too late .* make a new policy"):
        made.take_controls(("<|a|>", "<|c|>"))


def test_everything_that_a_policy_provides_has_its_axis():
    """Shapes of all quantities, against the table that says what each has one value of."""
    made = policy(seed=1)
    responses = arrange(WORK)
    other = policy(seed=2)
    against = (other(responses, ("hidden",))["hidden"], other.linear_head())
    values = made(responses, sorted(Policy.provides - {"logps"}), against)
    assert values.keys() == Policy.provides == AXIS.keys() - {"reference_logps", "reward"}
    sizes = {"token": len(responses.targets), "response": len(responses.lengths), "prompt": len(WORK)}
    assert len(set(sizes.values())) == 3
    assert {name: len(x) for name, x in values.items()} == {name: sizes[AXIS[name]] for name in values}
    reference = FrozenReference()
    reference.build(made)
    assert reference.score(responses, sorted(reference.provides - {"logps"})).keys() == reference.provides


def test_a_reference_takes_the_sums_that_a_batch_brings_along_unless_more_is_wanted():
    reference = FrozenReference()
    reference.build(policy())
    live = arrange(WORK)
    stored = evolve(live, reference_logps=torch.arange(float(len(live.lengths))))
    assert reference.score(stored)["logps"] is stored.reference_logps
    assert torch.equal(reference.score(stored, ())["logps"], stored.reference_logps)
    assert torch.equal(reference.score(live)["logps"], reference.score(stored, ("hidden",))["logps"])


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_only_scored_tokens_count(layout):
    """A tool's output within a response is read, not learned: its tokens stand in no sum, length or gradient."""
    model = policy(dtype="float64")
    prompt, response = [5, 9, 7], [11, 12, 20, 21, 22, 13, 2]
    mask = (True, True, False, False, False, True, True)
    groups = [Group(prompt, (response, [8, 2]), scored=(mask, None)), Group([4, 4], ([6, 6, 2],))]
    responses = collate_responses(groups, layout, row_tokens=32, pad_id=0)
    out = model(responses, ("token_logps",))
    whole = plain_logps(model, prompt, response)
    kept = whole[torch.tensor(mask)]
    assert responses.lengths.tolist() == [4, 2, 3] == [n for g in groups for n in g.scored_lengths]
    torch.testing.assert_close(out["logps"][0], kept.sum())
    torch.testing.assert_close(out["logps"][1], plain_logps(model, prompt, [8, 2]).sum())
    torch.testing.assert_close(out["token_logps"][:4], kept)
    ours = torch.autograd.grad(out["logps"][0], list(model.parameters()), retain_graph=True)
    theirs = torch.autograd.grad(kept.sum(), list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
