"""The harness gets a model folder that loads; without it there is one sentence."""

import sys
import types

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from upo.errors import UserError
from upo.evaluation.benchmarks import benchmark
from upo.evaluation.evaluation import Evaluation


def test_the_harness_gets_the_policy_as_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = tiny.policy(), {}

    def simple_evaluate(model: str, model_args: dict, tasks: list[str], **options):
        if "none" in tasks:
            raise KeyError("none")
        loaded = AutoModelForCausalLM.from_pretrained(model_args["pretrained"])
        ids = torch.tensor([[5, 6, 7]])
        seen["same"] = torch.equal(loaded(ids).logits, policy.model(input_ids=ids).logits)
        seen["tokens"] = len(AutoTokenizer.from_pretrained(model_args["pretrained"]))
        assert model == "hf" and options["fewshot_random_seed"] == 3
        row = {
            "alias": "arc",
            "acc,none": 0.25,
            "acc_stderr,none": 0.01,
            "acc_norm,strict": 0.5,
            "x_stderr,none": "N/A",
        }
        return {"results": {"arc": row}}

    fake = types.ModuleType("lm_eval")
    fake.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "lm_eval", fake)
    figures = benchmark(policy, ["arc"], seed=3)
    assert figures == {"tasks/arc/acc": 0.25, "tasks/arc/acc_se": 0.01, "tasks/arc/acc_norm_strict": 0.5}
    assert seen == {"same": True, "tokens": len(policy.tokenizer)}
    with pytest.raises(UserError, match="refuses none"):
        benchmark(policy, ["none"])


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `upo.fit` asks before it trains."""
    monkeypatch.setattr("upo.evaluation.benchmarks.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install lm-eval"):
        Evaluation(tasks=["arc_easy"]).check()
