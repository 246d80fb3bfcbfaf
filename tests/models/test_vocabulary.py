"""Models that score a policy's tokens must know them by the same ids."""

from pathlib import Path

import pytest
import tiny
import torch
from test_adapters import saved
from tokenizers import Tokenizer
from training import fit, make
from transformers import PreTrainedTokenizerFast

from upo.errors import UserError
from upo.methods import DPO
from upo.models.checkpoint import load_model
from upo.models.lora import LoRA
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.models.stored_reference import StoredReference


def with_ids_swapped(folder: Path) -> PreTrainedTokenizerFast:
    """As many tokens, two of which have changed places."""
    text = tiny.tokenizer().backend_tokenizer.to_str()
    a, b = '"A":', '"B":'
    i, j = (text.split(x)[1].split(",")[0].rstrip("}") for x in (a, b))
    swapped = text.replace(f"{a}{i}", f"{a}{j}", 1).replace(f"{b}{j}", f"{b}{i}", 1)
    assert swapped != text
    known = tiny.tokenizer().special_tokens_map
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(swapped), **known)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tiny.policy(max_position_embeddings=256), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of the same size with another vocabulary."""
    folder = tmp_path_factory.mktemp("foreign")
    tiny.policy(seed=1, max_position_embeddings=256).model.save_pretrained(folder)
    with_ids_swapped(folder).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", [FrozenReference, StoredReference])
def test_a_reference_with_another_vocabulary_is_refused(kind, base, foreign):
    policy = Policy(path=base)
    policy.build()
    with pytest.raises(UserError, match=r"another vocabulary than the policy: `A` is \d+ there, \d+ for the policy"):
        kind(foreign).build(policy)


def test_one_without_a_tokenizer_must_have_as_many_tokens(base, tmp_path):
    policy = Policy(path=base)
    policy.build()
    for size, folder in ((None, tmp_path / "same"), (400, tmp_path / "more")):
        fields = {} if size is None else {"vocab_size": size}
        tiny.policy(seed=1, **fields).model.save_pretrained(folder)
    FrozenReference(str(tmp_path / "same")).build(policy)
    with pytest.raises(UserError, match=r"more has 400 tokens, the policy \d+: its log-probs would be those of other"):
        FrozenReference(str(tmp_path / "more")).build(policy)


def test_other_added_tokens_are_said(base, tmp_path):
    """A chat model's base may hold its turn marks' ids in reserve, under other names."""
    made = tiny.policy(seed=1, vocab_size=340, max_position_embeddings=256)
    made.tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved|>"]})
    saved(made, tmp_path / "reference")
    policy = tiny.policy(vocab_size=340)
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    with pytest.warns(UserWarning, match=r"does not know these tokens .*'<\|turn\|>'"):
        FrozenReference(str(tmp_path / "reference")).build(policy)


@pytest.mark.parametrize("kind", [FrozenReference, StoredReference])
def test_the_policys_own_path_must_give_its_log_probs(kind, base, tmp_path):
    """Before the first step; another dtype, 4 bits or another start are another model."""

    def references(policy: Policy) -> bool:
        policy.build()
        reference = kind(base)
        reference.build(policy)
        return reference.starts_as_policy

    assert references(Policy(path=base)) and references(Policy(path=base, adapter=LoRA(r=2)))
    assert not references(Policy(path=saved(tiny.policy(), tmp_path / "other")))


def test_a_changed_policy_is_not_compared_with_its_own_path_in_silence(base, tmp_path):
    policy = Policy(path=base)
    policy.build()
    with torch.no_grad():
        policy.model.lm_head.weight += 1.0 * torch.randn(policy.model.lm_head.weight.shape)
    with pytest.raises(UserError, match=r"differ by .* nats before the first step"):
        fit(make(DPO, policy=policy, reference=FrozenReference(base)), tmp_path, steps=1, pairs_per_step=4)


def test_a_tokenizer_beyond_the_models_embeddings(tmp_path):
    made = tiny.policy()
    made.tokenizer.add_tokens([f"<{i}>" for i in range(8)])
    with pytest.raises(UserError, match=r"has \d+ tokens, the model only \d+ embeddings"):
        load_model(saved(made, tmp_path))
