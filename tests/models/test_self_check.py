"""What a model must prove when a policy takes it: packed = padded, causal, its head; and what is refused."""

import warnings

import pytest
import torch
from tiny import arrange, plain_logps, policy, units
from torch import nn

from upo.data.layout import collate_responses
from upo.data.units import Group
from upo.errors import UserError
from upo.models import self_check
from upo.models.policy import Policy
from upo.models.self_check import check_layouts
from upo.ops import prefix_attention

WORK = units([(3, [9, 2]), (20, [2, 3]), (1, [1])])
GQA = {"num_key_value_heads": 2, "intermediate_size": 48}
VISION = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
TEXT = GQA | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8, "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"], "initializer_range": 0.2,
}  # fmt: skip


def multimodal(**fields) -> Policy:
    """Gemma 3 as its models from 4b on are: the language model's settings are in a config within the config."""
    text = TEXT | {"max_position_embeddings": 64} | fields
    return policy("gemma3", text_config=text, vision_config=VISION, mm_tokens_per_image=4)


def of_hugging_face(made: Policy) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([plain_logps(made, u.prompt, r).sum() for u in WORK for r in u.responses])


def assert_right(made: Policy) -> None:
    expected = of_hugging_face(made)
    for layout in ("packed", "padded"):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(made(arrange(WORK, layout))["logps"], expected, atol=1e-4, rtol=0)


def test_a_config_within_a_config():
    """Sliding window, context, dropout and vocabulary are the language model's."""
    made = multimodal(attention_dropout=0.5)
    assert (made.packable, made.context) == (6, 64)
    assert made.model_config.get_text_config().vocab_size == len(made.tokenizer)
    assert made.model_config.get_text_config().attention_dropout == 0
    assert_right(made.train())


@pytest.mark.parametrize(
    ("kind", "shape", "packable"),
    [
        ("llama", GQA, None),
        ("gpt2", {}, None),
        ("qwen3", GQA | {"head_dim": 8}, None),
        ("gemma2", TEXT | {"query_pre_attn_scalar": 8}, 6),
        ("gemma3_text", TEXT, 6),
        ("mistral", GQA | {"sliding_window": 6}, 6),
        ("phi3", GQA | {"sliding_window": 6}, 6),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16}, None),
        ("gpt_oss", GQA | {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "sliding_window": 6}, 0),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, 0),
    ],
)
def test_both_layouts_are_hugging_face(kind, shape, packable):
    """OPT's forward goes round its body, to a part of it; GPT-OSS's softmax has a sink: its own attention runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of them surprises the check
        made = policy(kind, **shape)
    assert made.packable == packable
    assert_right(made)


class NeighbourAware(nn.Module):
    """Embeddings that add the token before: right in a sequence of its own, not where another response stands there."""

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self.weight, self.table = table.weight, table

    def forward(self, ids):
        states = self.table(ids)
        return states + nn.functional.pad(states, (0, 0, 1, 0))[:, :-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_no_config_says_is_found_by_trying(dtype):
    made = policy(dtype=dtype)
    assert made.packable is None
    made.model.set_input_embeddings(NeighbourAware(made.model.get_input_embeddings()))
    with pytest.warns(UserWarning, match=r"llama cannot take the packed layout \(states differ by \d+.\d%\); all of"):
        other = made.with_model(made.model)
    assert other.packable == 0
    if dtype == "float32":
        assert_right(other)


def test_models_that_fail_in_the_packed_layout_are_padded(monkeypatch):
    made = policy()

    def refuse(*args):
        raise UserError("no such thing")

    monkeypatch.setattr(prefix_attention.Segments, "attend", refuse)
    with pytest.warns(UserWarning, match=r"cannot take the packed layout \(no such thing\)"):
        assert check_layouts(made.model, "x") == 0


def test_a_window_that_layers_ask_for_counts_whatever_the_config_says(monkeypatch):
    made = policy("mistral", sliding_window=6)
    monkeypatch.setattr(prefix_attention, "longest", lambda model: None)
    assert check_layouts(made.model, "x") == 6


def test_tokens_that_see_later_ones_are_refused():
    with pytest.raises(UserError, match=r"gemma3_text lets tokens see what comes after them .* take a causal"):
        policy("gemma3_text", **TEXT, use_bidirectional_attention=True)


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_no_trace(training):
    """Neither in the run's random numbers nor in the model."""
    made = policy()
    made.model.train(training)
    before, weights = torch.get_rng_state(), {n: x.clone() for n, x in made.model.state_dict().items()}
    made.adopt(made.model)
    assert torch.equal(torch.get_rng_state(), before)
    assert made.model.training == training
    assert all(torch.equal(x, weights[n]) for n, x in made.model.state_dict().items())
    assert not made.model.base_model._forward_hooks and not made.model.lm_head._forward_pre_hooks


def test_a_random_check_is_no_tighter_than_rounding():
    """The same states in bfloat16 pass, and are far from the limit that separates them from another mask's."""
    made = policy(dtype="bfloat16")
    groups = self_check._examples(made.model)
    packed, padded = (collate_responses(groups, x, row_tokens=64, pad_id=0) for x in ("packed", "padded"))
    a, b = (self_check.hidden_states(made.model, x)[-1][x.logit_positions] for x in (packed, padded))
    assert self_check._gap(a, b) < self_check.ROUGH / 3


def test_attention_over_other_positions_than_the_batchs_is_refused():
    """A vision tower's patches would be read out of bounds."""
    packed = collate_responses([Group([5, 6], ([7, 2], [8, 2]))], "packed", row_tokens=8, pad_id=0)
    plan = prefix_attention.segments(packed)
    fitting = torch.randn(1, 2, packed.input_ids.shape[1], 8)
    assert plan.attend(fitting, fitting, fitting, None).shape == (1, packed.input_ids.shape[1], 2, 8)
    for query, key in ((torch.randn(3, 2, 16, 8),) * 2, (fitting, torch.randn(1, 2, 16, 8)), (fitting[:, :, 1:],) * 2):
        with pytest.raises(UserError, match="a packed batch has 4 tokens"):
            plan.attend(query, key, key, None)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("t5", {"d_model": 32}, "t5 is an encoder-decoder model"),
        ("bart", {"d_model": 32}, "bart is an encoder-decoder model"),
        ("vit", {}, "vit is no language model that transformers knows as a causal one"),
        ("bert", {}, "bert changes its states between its layers and its output embeddings"),
        ("llama4_text", GQA | {"intermediate_size_mlp": 48, "num_local_experts": 2}, "which of its parts is below"),
    ],
)
def test_true_reasons(kind, fields, words):
    with pytest.raises(UserError, match=words):
        policy(kind, **fields)


def test_an_encoder_decoder_on_the_disk(tmp_path):
    from transformers import AutoConfig

    AutoConfig.for_model("t5", d_model=32).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"t5 is an encoder-decoder model: .* take a causal"):
        Policy(path=str(tmp_path), tokenizer="tiny.tokenizer").build()
