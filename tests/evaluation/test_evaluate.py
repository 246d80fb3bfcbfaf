"""Evaluation: figures against their definitions, and the same ones again from a checkpoint."""

import json
from pathlib import Path

import pytest
import tiny
import torch

from upo.data.example import Example
from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.data.units import Unit
from upo.errors import UserError
from upo.evaluate import Evaluation, main
from upo.evaluation.measure import distinct_prompts, held_out_examples, log_probs, token_figures
from upo.evaluation.systems import partial_file, sampled
from upo.judges import Judge, Verdict
from upo.methods import DPO, SFT
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.rewards import Grade, Readability, Sentiment, Words
from upo.rollout.sampling import sample

pytestmark = pytest.mark.turns(3)

WORDS = ("happy", "sad", "big", "little", "bad", "good", "lost", "kind", "dark", "red", "old", "new")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Story pairs in TRL's format; every fourth prompt has two pairs."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS):
        prompt = f"Once upon a time, there was a {a} {b} dog."
        rows += [
            {"prompt": prompt, "chosen": f" He was {word}.", "rejected": " He cried, he was lost and sad."}
            for word in ("very happy", "kind")[: 1 + (i % 4 == 0)]
        ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def data(pairs: Path, **options) -> PreferenceData:
    source = Source(name="trl", path=str(pairs))
    return PreferenceData((source,), validation=40, rewards={"length": Words(), "mood": Sentiment()}, **options)


def method(kind: type, model: str, noise: float = 0.0, **options):
    made = kind(Policy(path=model), **options)
    made.configure_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.policy.parameters():
            p += noise * p.std() * torch.randn(p.shape, generator=generator)
    return made


SETTINGS = {"prompts": 24, "max_new_tokens": 16, "judge": Sentiment(), "samples": 1}


@pytest.fixture(scope="module")
def noisy(stories260k: str, pairs: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("noisy")
    dpo = method(DPO, stories260k, noise=0.1, reference=FrozenReference())
    figures = Evaluation(**SETTINGS, objective={"length": 0.1, "mood": 2.0}).run(dpo, data(pairs), folder)
    return dpo, figures, folder


def test_figures_are_means_of_what_is_written_by_prompt(noisy) -> None:
    _, figures, folder = noisy
    content = json.loads((folder / "evaluation.json").read_text())
    assert content["metrics"] == figures
    rows = content["prompts"]
    assert len({row["prompt"] for row in rows}) == len(rows) == 24

    def mean(system: str, name: str) -> float:
        return sum(row[system][name] for row in rows) / 24

    for system in ("policy", "reference", "chosen"):
        for name in ("rewards/length", "rewards/mood", "rewards/judge", "objective", "tokens", "words"):
            assert figures[f"{system}/{name}"] == pytest.approx(mean(system, name)), (system, name)
    for row in rows:
        own, other, best = row["policy"], row["reference"], row["chosen"]
        assert own["objective"] == pytest.approx(0.1 * own["rewards/length"] + 2 * own["rewards/mood"])
        for a, b, name in ((own, best, "chosen"), (other, best, "chosen"), (own, other, "reference")):
            x, y = a["rewards/judge"], b["rewards/judge"]
            assert a[f"win_rate_vs_{name}"] == (0.5 if x == y else float(x > y))
    for name in (
        "policy/win_rate_vs_chosen",
        "policy/win_rate_vs_reference",
        "policy/kl",
        "val/rewards/accuracies",
    ):
        assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]
    texts = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    moods = Sentiment()([t["prompt"] for t in texts], [t["policy"] for t in texts])
    assert moods == [row["policy"]["rewards/mood"] for row in rows]
    for text, row in zip(texts, rows, strict=True):
        assert text["asked"] in text["model_reads"], "the user's words, and what stands around them for the model"
        for system in ("policy", "reference", "chosen"):
            names = {"rewards/length", "rewards/mood", "rewards/judge", "objective"}
            names |= {name for name in row[system] if name.startswith("win_rate")}
            assert text["scores"][system] == {name: row[system][name] for name in names}


def test_the_same_checkpoint_twice_gives_the_same_figures(noisy, pairs: Path, tmp_path: Path) -> None:
    dpo, figures, folder = noisy
    again = Evaluation(**SETTINGS, objective={"length": 0.1, "mood": 2.0}).run(dpo, data(pairs), tmp_path)
    assert again == figures
    for name in ("evaluation.json", "samples.jsonl", "evaluation.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["alpaca_eval.json", "evaluation.json", "evaluation.png", "report.html", "report.md", "samples.jsonl"]
    ), "nothing partial is left"


def test_a_killed_evaluation_goes_on_where_it_was(noisy, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    import upo.rollout.sampling

    dpo, figures, _ = noisy
    whole, asked = upo.rollout.sampling._continue, []

    def killed(model, prompts, *rest):
        asked.append(len(prompts))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return whole(model, prompts, *rest)

    monkeypatch.setattr(upo.rollout.sampling, "_continue", killed)
    settings = Evaluation(**SETTINGS, batch_size=8, objective={"length": 0.1, "mood": 2.0})
    with pytest.raises(KeyboardInterrupt):
        settings.run(dpo, data(pairs), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [partial_file(tmp_path).name]
    again = settings.run(dpo, data(pairs), tmp_path)
    assert asked == [8] * 7, "six batches, the fifth twice"
    assert again == pytest.approx(figures, abs=1e-4) and not partial_file(tmp_path).exists()


def test_other_weights_take_nothing_from_a_killed_evaluation(noisy, pairs: Path, tmp_path: Path, stories260k) -> None:
    dpo, _, _ = noisy
    asked = distinct_prompts(held_out_examples(data(pairs)), 4, 0)
    settings = {"max_new_tokens": 8, "seed": 0}
    ours = sampled(dpo.policy, "policy", asked, tmp_path, **settings)
    theirs = sampled(dpo.reference.model, "reference", asked, tmp_path, **settings)
    assert [s.ids for s in ours] != [s.ids for s in theirs]
    assert [s.ids for s in sampled(dpo.policy, "policy", asked, tmp_path, **settings)] == [s.ids for s in ours]
    other = sampled(dpo.policy, "policy", asked, tmp_path, **settings | {"seed": 1})
    assert [s.ids for s in other] != [s.ids for s in ours]


def test_entropy_and_the_standard_error_of_kl(noisy) -> None:
    dpo, figures, folder = noisy
    rows = json.loads((folder / "evaluation.json").read_text())["prompts"]
    kl = torch.tensor([row["policy"]["kl"] for row in rows])
    assert figures["policy/kl_se"] == pytest.approx((kl.std() / 24**0.5).item(), rel=1e-5)
    texts = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    asked = dict(zip([t["prompt"] for t in texts], rows, strict=True))
    prompts = list(asked)[:3]
    groups = sample(dpo.policy.model, dpo.policy.tokenizer, list(asked), max_new_tokens=16, seed=0)
    for prompt, (s,) in zip(prompts, groups, strict=False):
        with torch.no_grad():
            logits = dpo.policy.model(input_ids=torch.tensor([s.prompt_ids + s.ids]), use_cache=False).logits[0]
        log_p = logits[len(s.prompt_ids) - 1 : -1].float().log_softmax(-1)
        assert asked[prompt]["policy"]["entropy"] == pytest.approx(
            -(log_p.exp() * log_p).sum(-1).mean().item(), abs=1e-4
        )


def test_against_another_run(noisy, pairs: Path, tmp_path: Path, stories260k: str) -> None:
    _, figures, folder = noisy
    start = method(DPO, stories260k, reference=FrozenReference())
    found = Evaluation(**SETTINGS, against=folder).run(start, data(pairs), tmp_path)
    assert found["rival/rewards/mood"] == figures["policy/rewards/mood"]
    assert found["rival/tokens"] == figures["policy/tokens"] and found["rival/ended"] == figures["policy/ended"]
    assert found["policy/win_rate_vs_rival"] == pytest.approx(1 - figures["policy/win_rate_vs_reference"])
    with pytest.raises(UserError, match="max_new_tokens=16"):
        Evaluation(**SETTINGS | {"max_new_tokens": 12}, against=folder).run(start, data(pairs), tmp_path)
    with pytest.raises(UserError, match="on other prompts: 6 of 30"):
        Evaluation(**SETTINGS | {"prompts": 30}, against=folder).run(start, data(pairs), tmp_path)
    with pytest.raises(UserError, match="no finished evaluation"):
        Evaluation(**SETTINGS, against=tmp_path / "none").run(start, data(pairs), tmp_path)


class Shorter(Judge):
    """Prefers fewer characters."""

    def __call__(self, prompts, first, second):
        return [Verdict(0.5 * (1 + (len(b) > len(a)) - (len(a) > len(b)))) for a, b in zip(first, second, strict=True)]

    def fingerprint(self) -> str:
        return "Shorter"


def test_a_judge_that_reads_both_texts_and_further_rewards(noisy, pairs: Path, tmp_path: Path) -> None:
    dpo, _, _ = noisy
    settings = SETTINGS | {"judge": Shorter(), "rewards": {"grade": Grade(), "R1": Readability()}}
    figures = Evaluation(**settings, objective={"R1": 1.0}).run(dpo, data(pairs), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    wins = [0.5 + 0.5 * ((len(r["policy"]) < len(r["chosen"])) - (len(r["policy"]) > len(r["chosen"]))) for r in rows]
    assert figures["policy/win_rate_vs_chosen"] == pytest.approx(sum(wins) / len(wins))
    assert figures["policy/unparsed_vs_chosen"] == 0 and "policy/rewards/judge" not in figures
    grades = Grade()([r["prompt"] for r in rows], [r["policy"] for r in rows])
    assert figures["policy/rewards/grade"] == pytest.approx(sum(grades) / len(grades))
    assert figures["policy/objective"] == figures["policy/rewards/R1"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["settings"]["judge"] == "Shorter"


def full_logps(policy: Policy, ids: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(input_ids=torch.tensor(ids), use_cache=False).logits.float().log_softmax(-1)


def test_kl_is_that_of_whole_distributions_along_the_policys_samples(noisy, pairs: Path) -> None:
    dpo, figures, folder = noisy
    asked = distinct_prompts(held_out_examples(data(pairs)), 24, 0)
    groups = sample(dpo.policy.model, dpo.policy.tokenizer, [e.prompt for e in asked], max_new_tokens=16, seed=0)
    expected = []
    for (s,) in groups:
        start = len(s.prompt_ids) - 1
        p, q = (full_logps(m, [s.prompt_ids + s.ids])[0, start:-1] for m in (dpo.policy, dpo.reference.model))
        expected.append((p.exp() * (p - q)).sum().item())
    found = [row["policy"]["kl"] for row in json.loads((folder / "evaluation.json").read_text())["prompts"]]
    assert found == pytest.approx(expected, abs=1e-3) and min(found) >= 0
    assert figures["policy/kl"] == pytest.approx(sum(expected) / 24, abs=1e-3)


def test_kl_of_plain_samples_is_unbiased(noisy) -> None:
    """Responses of two tokens: the exact divergence over all of them, by summing over the first token."""
    dpo, _, _ = noisy
    policy, reference = dpo.policy, dpo.reference.model
    example = Example("Once upon a time", ())
    groups = sample(policy.model, policy.tokenizer, [example.prompt], responses=400, max_new_tokens=2, top_p=1.0)
    units = [Unit.of(s.prompt_ids, (s.ids,), example) for s in groups[0]]
    got = log_probs(policy, reference, units, data(Path("none")), "", by_token=True)
    prompt, eos = units[0].prompt, policy.tokenizer.eos_token_id
    size = policy.model.config.vocab_size
    first = [full_logps(m, [prompt])[0, -1] for m in (policy, reference)]
    second = [full_logps(m, [[*prompt, v] for v in range(size)])[:, -1] for m in (policy, reference)]
    p, behind = first[0].exp(), (second[0].exp() * (second[0] - second[1])).sum(-1)
    behind[eos] = 0
    exact = (p * (first[0] - first[1])).sum() + (p * behind).sum()
    kl = torch.tensor(token_figures(got)["kl"])
    assert kl.mean().item() == pytest.approx(exact.item(), abs=4 * (kl.std() / 20).item())
    assert 3 * kl.std() < got.logratio.std(), "of less variance than log-ratios"


def test_accuracies_count_pairs(noisy, pairs: Path) -> None:
    dpo, figures, folder = noisy
    tokenizer = dpo.policy.tokenizer
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    held_out = {e.prompt for e in held_out_examples(data(pairs))}
    rows = [row for row in rows if row["prompt"] in held_out]
    assert len(rows) > len(held_out) == 40
    wins = {"val/ranking/accuracies": [], "val/ranking/accuracies_mean": [], "val/rewards/accuracies": []}

    def ids(text: str) -> list[int]:  # behind a line break, whose tokens are dropped, the space survives
        anchor = tokenizer("\n", add_special_tokens=False).input_ids
        return tokenizer("\n" + text, add_special_tokens=False).input_ids[len(anchor) :]

    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        sums, means, ratios = [], [], []
        for text in (row["chosen"], row["rejected"]):
            response = [*ids(text), tokenizer.eos_token_id]
            with torch.no_grad():
                ours, theirs = (tiny.plain_logps(p, prompt, response) for p in (dpo.policy, dpo.reference.model))
            sums.append(ours.sum())
            means.append(ours.mean())
            ratios.append(ours.sum() - theirs.sum())
        for own, x in zip(wins.values(), (sums, means, ratios), strict=True):
            own.append(float(x[0] > x[1]))
    for name, own in wins.items():
        assert figures[name] == pytest.approx(sum(own) / len(own)), name
        assert figures[f"{name}_n"] == len(rows)
    assert len(json.loads((folder / "evaluation.json").read_text())["pairs"]) == len(rows)


def test_a_policy_like_its_reference_ties_with_it(stories260k: str, pairs: Path, tmp_path: Path) -> None:
    dpo, own = method(DPO, stories260k, reference=FrozenReference()), data(pairs)
    dpo.policy.train()
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in dpo.policy.state_dict().items()}
    figures = Evaluation(**SETTINGS).run(dpo, own, tmp_path)
    assert figures["policy/kl"] == 0
    assert figures["policy/win_rate_vs_reference"] == figures["val/rewards/accuracies"] == 0.5
    assert figures["policy/distinct_2"] == figures["reference/distinct_2"]
    assert "policy/objective" not in figures
    # and nothing else was touched
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in dpo.policy.state_dict().items())
    assert dpo.policy.training and not dpo.reference.model.training
    assert not own.report.to_dict()


def test_without_a_reference_its_figures_are_left_out(stories260k: str, pairs: Path, tmp_path: Path) -> None:
    sft = method(SFT, stories260k)
    figures = Evaluation(**SETTINGS).run(sft, data(pairs), tmp_path)
    assert not [n for n in figures if n.startswith("reference/") or "vs_reference" in n or "kl" in n]
    assert {"val/ranking/accuracies", "policy/win_rate_vs_chosen", "policy/rewards/mood"} <= figures.keys()
    assert "val/rewards/accuracies" not in figures
    named = Evaluation(**SETTINGS | {"reference": stories260k}).run(sft, data(pairs), tmp_path)
    assert named["policy/kl"] == 0 and named["val/rewards/accuracies"] == 0.5
    assert named["policy/rewards/mood"] == figures["policy/rewards/mood"]


def test_without_chosen_responses_their_figures_are_left_out(stories260k: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"A {a} {b} dog.", "completion": " He ran.", "label": True} for a in WORDS for b in WORDS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = Evaluation(**SETTINGS).run(method(SFT, stories260k), data(file), tmp_path)
    assert not [n for n in figures if "chosen" in n or n.startswith("val/")]
    assert "policy/rewards/mood" in figures


def test_prompts_are_chosen_by_seed_whatever_their_order(pairs: Path) -> None:
    examples = held_out_examples(data(pairs))
    some = distinct_prompts(examples, 10, 0)
    assert [e.prompt for e in some] == [e.prompt for e in distinct_prompts(examples[::-1], 10, 0)]
    assert [e.prompt for e in some] != [e.prompt for e in distinct_prompts(examples, 10, 1)]


YAML = """\
model:
  class_path: UPO
  init_args:
    policy: {{path: {model}}}
    reference: FrozenReference
    reward_weights: {{mood: 1.0}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3}}}}
data:
  sources: [{{name: trl, path: {pairs}}}]
  validation: 40
  rewards: {{mood: Sentiment}}
  rewards_cache: cache
  max_length: 200
trainer: {{default_root_dir: run, max_steps: 3, accelerator: cpu, enable_progress_bar: false}}
evaluation: {{prompts: 20, max_new_tokens: 12, judge: Sentiment, samples: 1}}
"""


def test_a_run_evaluates_itself_and_again_from_its_folder(
    stories260k: str, pairs: Path, tmp_path: Path, upo_fit, monkeypatch
) -> None:
    (tmp_path / "x.yaml").write_text(YAML.format(model=stories260k, pairs=pairs))
    done = upo_fit("--config", "x.yaml", "--seed_everything", "5")
    assert done.code == 0, done.text
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    first = json.loads((run / "evaluation.json").read_text())
    assert summary["policy/objective"] == summary["policy/rewards/mood"]
    assert summary["policy/kl"] != 0
    monkeypatch.chdir(tmp_path)
    main(["run"])
    again = json.loads((run / "evaluation.json").read_text())
    figures = first.pop("metrics")
    assert again.pop("metrics") == pytest.approx(figures, abs=1e-5, nan_ok=True)  # another process, other threads
    assert again == first
    assert json.loads((run / "summary.json").read_text()) == pytest.approx(summary, abs=1e-5, nan_ok=True)

    main([stories260k, "--config", "run/config.yaml", "--out", "start"])  # the model that the run started from
    start = json.loads(Path("start/evaluation.json").read_text())["metrics"]
    assert start["policy/kl"] == 0 and start["policy/win_rate_vs_reference"] == 0.5
    assert start["reference/rewards/mood"] == summary["reference/rewards/mood"]


MISTAKES = {
    "nowhere": "no such run folder",
    "nowhere --config none.yaml": "is no configuration",
    "nowhere --prompts 0": "prompts",
    "nowhere --judge Sentimentt": "Sentimentt",
    "nowhere --unsafe_rank nobody": "unsafe_rank",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_give_one_error(line: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(line.split())
    error = capsys.readouterr().err
    assert error.startswith("error: ") and MISTAKES[line] in error and len(error.splitlines()) <= 3


def test_prompts_that_the_template_refuses_are_left_out(
    stories260k: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Evaluated are as many others, and a line says how many were refused; with none left an error says what to do."""
    rows = []
    for i, a in enumerate(WORDS):
        system = [{"role": "system", "content": "Be kind."}] * (i % 3 == 0)
        chosen, rejected = ([{"role": "assistant", "content": f"{x} {a}."}] for x in ("A very", "Not"))
        prompt = [*system, {"role": "user", "content": f"Say {a}."}]
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = str(shared / "data" / "awkward" / "raise.jinja")
    sft = SFT(Policy(path=stories260k, chat_template=template))
    sft.configure_model()
    source = Source(name="trl", path=str(tmp_path / "chat.jsonl"))
    settings = {"max_new_tokens": 4, "samples": 0}
    with pytest.warns(UserWarning, match=r"0 of 8 responses of the policy ended within 4 tokens"):
        Evaluation(**settings, prompts=10).run(sft, PreferenceData((source,), validation=11), tmp_path)
    asked = [json.loads(line)["prompt"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert 7 <= len(asked) <= 8 and not any("Be kind." in prompt for prompt in asked)
    assert "held-out prompts are left out: the chat template cannot write them" in capsys.readouterr().out
    held_out = [e for e in held_out_examples(PreferenceData((source,), validation=11)) if len(e.prompt) == 2]
    with pytest.raises(UserError, match=r"no held-out prompt; set policy\.chat_template"):
        distinct_prompts(held_out, 10, 0, lambda prompt: False)
