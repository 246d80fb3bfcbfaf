"""The harness gets a model folder that loads, and its options; what is wrong with tasks is known before training."""

import json
import sys
import types
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from mistakes import refused
from transformers import AutoModelForCausalLM, AutoTokenizer

from upo.cli.main import main
from upo.errors import UserError
from upo.evaluation.benchmarks import Harness, benchmark
from upo.evaluation.evaluation import Evaluation


class TaskManager:
    """The harness's, with three tasks, one of which has no data."""

    all_tasks = ["arc_easy", "gone", "hellaswag"]

    def __init__(self, include_path: str | None = None):
        self.include_path = include_path

    def load(self, tasks: list[str]) -> None:
        torch.rand(1)  # whatever is drawn there must not matter
        if "gone" in tasks:
            raise ConnectionError("Couldn't reach 'allenai/gone' on the Hub")
        if unknown := set(tasks) - set(self.all_tasks):
            raise KeyError(f"Spec {unknown} is not registered")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    harness, tasks = types.ModuleType("lm_eval"), types.ModuleType("lm_eval.tasks")
    tasks.TaskManager = TaskManager  # type: ignore[attr-defined]
    harness.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "lm_eval", harness)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    return harness


def test_the_harness_gets_the_policy_as_a_folder(stand_in: types.ModuleType) -> None:
    policy, seen = tiny.policy(), {}

    def simple_evaluate(model: str, model_args: dict, tasks: list[str], **options):
        if "none" in tasks:
            raise KeyError("none")
        loaded = AutoModelForCausalLM.from_pretrained(model_args["pretrained"])
        ids = torch.tensor([[5, 6, 7]])
        seen["same"] = torch.equal(loaded(ids).logits, policy.model(input_ids=ids).logits)
        seen["tokens"] = len(AutoTokenizer.from_pretrained(model_args["pretrained"]))
        assert model == "hf" and options["fewshot_random_seed"] == 3
        assert isinstance(options["task_manager"], TaskManager)
        assert (options["num_fewshot"], options["limit"], options["apply_chat_template"]) == (5, 10, True)
        row = {
            "alias": "arc",
            "acc,none": 0.25,
            "acc_stderr,none": 0.01,
            "acc_norm,strict": 0.5,
            "x_stderr,none": "N/A",
        }
        return {"results": {"arc": row}}

    stand_in.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    harness = Harness(num_fewshot=5, limit=10, apply_chat_template=True)
    figures = benchmark(policy, ["arc"], harness, seed=3)
    assert figures == {"tasks/arc/acc": 0.25, "tasks/arc/acc_se": 0.01, "tasks/arc/acc_norm_strict": 0.5}
    assert seen == {"same": True, "tokens": len(policy.tokenizer)}
    with pytest.raises(UserError, match="refuses none"):
        benchmark(policy, ["none"], harness)


def test_tasks_are_made_before_a_run(stand_in: types.ModuleType, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    Evaluation(tasks=["arc_easy", "hellaswag"]).check()
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(UserError, match="no task `helaswag`; did you mean hellaswag"):
        Evaluation(tasks=["arc_easy", "helaswag"]).check()
    with pytest.raises(UserError, match=r"cannot read the data of the task gone.*Couldn't reach 'allenai/gone'"):
        Evaluation(tasks=["gone"]).check()
    with pytest.raises(UserError, match="include_path: no such folder"):
        Evaluation(tasks=["arc_easy"], harness=Harness(include_path=tmp_path / "none")).check()
    with pytest.raises(UserError, match=f"no task `zzzz`, nor does {tmp_path}; `lm-eval ls tasks`"):
        Evaluation(tasks=["zzzz"], harness=Harness(include_path=tmp_path)).check()


def test_a_mistyped_task_ends_a_run_before_its_earlier_stages(
    stand_in: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {
            "class_path": "SFT",
            "init_args": {"policy": {"config": {"model_type": "llama"}, "tokenizer": "none"}},
        },
        "data": {"sources": [{"name": "world"}]},
    }
    Path("first.yaml").write_text(yaml.safe_dump(config))
    Path("run.yaml").write_text(
        yaml.safe_dump(config | {"after": ["first.yaml"], "evaluation": {"tasks": ["arc_esy"]}})
    )
    assert "did you mean arc_easy?" in refused(main, capsys, "--config", "run.yaml")
    assert not Path("runs/first").exists() and not list(Path("runs").glob("*/checkpoints"))
    options = ["--config", "run.yaml", "--evaluation.tasks=[gone]", "--evaluation.harness.limit=3"]
    assert "cannot read the data of the task gone" in refused(main, capsys, *options)


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    """A folder with a task of one's own: questions in a .jsonl beside its YAML."""
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (the extra `eval`)")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"one and {i}", "choices": ["yes", "no"], "answer": i % 2} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "upo_own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(task))
    broken = task | {"task": "upo_broken", "dataset_kwargs": {"data_files": {"test": str(folder / "none.jsonl")}}}
    (folder / "broken.yaml").write_text(yaml.safe_dump(broken))
    return folder


def test_the_real_harness_runs_a_task_of_ones_own(own_task: Path) -> None:
    harness = Harness(include_path=own_task, num_fewshot=2, limit=6)
    Evaluation(tasks=["upo_own"], harness=harness).check()
    with pytest.raises(UserError, match=r"no task `upo_onw`.*did you mean upo_own"):
        Evaluation(tasks=["upo_onw"], harness=harness).check()
    with pytest.raises(UserError, match=r"cannot read the data of the task upo_broken.*none\.jsonl"):
        Evaluation(tasks=["upo_broken"], harness=harness).check()
    figures = benchmark(tiny.policy(max_position_embeddings=512), ["upo_own"], harness, seed=1)
    assert 0 <= figures["tasks/upo_own/acc"] <= 1 and figures["tasks/upo_own/acc_se"] >= 0
    assert (figures["tasks/upo_own/acc"] * 6).is_integer(), "six questions"


def test_the_real_harness_takes_the_chat_template(own_task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(include_path=own_task, limit=2, apply_chat_template=True)
    policy = tiny.policy(max_position_embeddings=512)
    policy.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert "tasks/upo_own/acc" in benchmark(policy, ["upo_own"], harness)
    policy.tokenizer.chat_template = None
    with pytest.raises(UserError, match="refuses upo_own"):
        benchmark(policy, ["upo_own"], harness)


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `upo.fit` asks before it trains."""
    monkeypatch.setattr("upo.evaluation.benchmarks.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install lm-eval"):
        Evaluation(tasks=["arc_easy"]).check()
