"""Sampling by vLLM, with a stand-in for its module: what it is asked for means what our own sampling does."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import families
import pytest
import tiny
import torch
from attrs import define
from transformers import AutoModelForCausalLM, AutoTokenizer

from upo.data.control import add_controls, never_written
from upo.errors import UserError
from upo.evaluate import Evaluation
from upo.models.lora import LoRA
from upo.rewards import Sentiment
from upo.rollout.preference_set import generate
from upo.rollout.sampling import draw, sample
from upo.rollout.vllm import row_seed

PROMPTS = ["How do I bake bread?", "Why", "Say hello.", "Name a colour, any colour that you like, please."]


@define(kw_only=True)
class SamplingParams:
    """The fields of vLLM's that we use; an unknown one is refused, as there."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop_token_ids: list[int]
    ignore_eos: bool
    logit_bias: dict[int, float] | None
    detokenize: bool


class LLM:
    """Does what vLLM documents, token by token, from the folder that it is given."""

    made: list["LLM"] = []
    returns_eos = True

    def __init__(
        self, *, model: str, dtype: str, seed: int, generation_config: str, max_model_len: int, trust_remote_code: bool
    ):
        assert generation_config == "vllm" and 0 <= seed < 2**31 and not trust_remote_code
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.eos = AutoTokenizer.from_pretrained(model).eos_token_id
        self.asked: list[SamplingParams] = []
        self.context = max_model_len
        LLM.made.append(self)

    @torch.no_grad()
    def generate(self, prompts: Sequence[dict], settings: Sequence[SamplingParams], *, use_tqdm: bool):
        self.asked += settings
        lengths = [len(p["prompt_token_ids"]) + s.max_tokens for p, s in zip(prompts, settings, strict=True)]
        assert max(lengths) <= self.context
        return [
            SimpleNamespace(outputs=[self._one(list(p["prompt_token_ids"]), s)])
            for p, s in zip(prompts, settings, strict=True)
        ]

    def _one(self, ids: list[int], s: SamplingParams):
        start, numbers = len(ids), torch.Generator().manual_seed(s.seed)
        while len(ids) - start < s.max_tokens:
            logits = self.model(torch.tensor([ids])).logits[:, -1].float()
            for token, bias in (s.logit_bias or {}).items():
                logits[:, token] += bias
            uniform = torch.rand(1, generator=numbers)
            ids.append(int(draw(logits, uniform, temperature=s.temperature, top_p=s.top_p)))
            if ids[-1] in s.stop_token_ids:
                kept = ids[start : len(ids) - (not self.returns_eos)]
                return SimpleNamespace(token_ids=kept, finish_reason="stop", stop_reason=ids[-1])
        return SimpleNamespace(token_ids=ids[start:], finish_reason="length", stop_reason=None)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("upo.rollout.vllm.find_spec", lambda name: module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM


@pytest.fixture(scope="module")
def policy():
    """A model that likes to write its control token, and often ends."""
    made = tiny.policy()
    add_controls(made.tokenizer, ["<|good|>"])
    made.model.resize_token_embeddings(len(made.tokenizer), mean_resizing=False)
    with torch.no_grad():
        head = made.model.get_output_embeddings().weight
        head[never_written(made.tokenizer)] *= 3
        head[made.tokenizer.eos_token_id] *= 2
    return made


def written(policy, **options):
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3, "backend": "vllm"} | options
    return sample(policy.model, policy.tokenizer, PROMPTS, **options)


@pytest.mark.parametrize("returns_eos", [True, False])
def test_greedy_responses_are_those_of_the_other_backend(policy, vllm, returns_eos: bool, monkeypatch) -> None:
    """Same prompts, limit, end and forbidden tokens: nothing is left to chance, so all is equal."""
    monkeypatch.setattr(vllm, "returns_eos", returns_eos)
    ours = written(policy, temperature=0.0, backend="transformers", max_new_tokens=40)
    assert written(policy, temperature=0.0, max_new_tokens=40) == ours
    assert {s.finish_reason == "stop" for (s,) in ours} == {True, False}, "the test needs both"


@pytest.mark.parametrize("returns_end", [True, False])
def test_turns_end_where_the_template_and_the_generation_config_end_them(vllm, returns_end: bool, monkeypatch) -> None:
    """ChatML on a base model that also stops at its padding: three ends, on both backends."""
    monkeypatch.setattr(vllm, "returns_eos", returns_end)
    made = tiny.policy(vocab_size=400)
    made.__dict__["tokenizer"] = chat = families.tokenizer("chatml")
    ends = chat.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>", "<pad>"])
    made.model.generation_config.eos_token_id = [ends[0], ends[2]]
    with torch.no_grad():
        made.model.get_output_embeddings().weight[ends] *= 1.5
    asked = [({"role": "user", "content": text},) for text in PROMPTS * 4]
    written = {}
    for backend in ("transformers", "vllm"):
        sampling = {"max_new_tokens": 40, "temperature": 0.0, "backend": backend}
        written[backend] = [s for (s,) in sample(made.model, chat, asked, **sampling)]
    assert written["vllm"] == written["transformers"]
    for s in written["vllm"]:
        assert (s.finish_reason == "stop") == (s.ids[-1] in ends) and not {*s.ids[:-1]} & {*ends}
    assert len({s.ids[-1] for s in written["vllm"]} & {*ends}) > 1, "the test needs several"
    assert {tuple(x.stop_token_ids) for x in vllm.made[0].asked} == {tuple(sorted(ends))}
    assert not {*ends} & {*(vllm.made[0].asked[0].logit_bias or {})}


def test_every_argument_reaches_vllm(policy, vllm) -> None:
    written(policy, responses=2, top_p=0.7, temperature=0.6)
    asked = vllm.made[0].asked
    eos, never = policy.tokenizer.eos_token_id, never_written(policy.tokenizer)
    for one in asked:
        assert (one.n, one.temperature, one.top_p, one.max_tokens) == (1, 0.6, 0.7, 12)
        assert one.stop_token_ids == [eos] and one.ignore_eos and not one.detokenize
        assert one.logit_bias == dict.fromkeys(never, -100.0) and len(never) > 1 and eos not in never
    assert {one.seed for one in asked} == {row_seed(3, i, k) for i in range(4) for k in range(2)}


def test_the_same_seed_gives_the_same_texts_whatever_the_batches(policy, vllm) -> None:
    first = written(policy, responses=3)
    assert written(policy, responses=3, batch_size=2) == first
    assert written(policy, responses=3, batch_size=5, kept=(kept := {})) == first and len(kept) == 12
    assert len({tuple(s.ids) for group in first for s in group}) > 6, "rows share no random numbers"
    never = set(never_written(policy.tokenizer))
    assert not never & {i for group in first for s in group for i in s.ids}


def test_without_vllm_one_sentence_before_anything_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("upo.rollout.vllm.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed: pip install vllm"):
        Evaluation(backend="vllm").check()
    with pytest.raises(UserError, match="not installed: pip install vllm"):
        generate("nowhere", Sentiment(), tmp_path / "pairs.jsonl", self_prompts=2, backend="vllm")


def test_an_adapter_is_to_be_merged_first(vllm) -> None:
    made = tiny.policy()
    LoRA(r=2).attach(made.model, None, grown=False)
    with pytest.raises(UserError, match="merge the adapter first"):
        written(made)


def test_generate_by_vllm(stories260k: str, vllm, tmp_path: Path) -> None:
    file, sizes = tmp_path / "pairs.jsonl", {"prompt_tokens": 16, "responses": 2, "max_new_tokens": 6}
    generate(stories260k, Sentiment(), file, self_prompts=3, backend="vllm", **sizes)
    assert len(file.read_text().splitlines()) == 3
    openings, responses = vllm.made[0].asked, vllm.made[-1].asked
    assert {(x.max_tokens, x.top_p) for x in openings} == {(16, 1.0)}
    assert [(x.max_tokens, x.top_p) for x in responses] == [(6, 0.95)] * 6
