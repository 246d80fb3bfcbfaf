"""What `python -m upo.rewards --config` measures: by hand, on data with a known conflict."""

import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.errors import UserError
from upo.rewards import Grade, Mixture, Pattern, Words
from upo.rewards.__main__ import main
from upo.rewards.survey import rank_correlations, survey

PAIRS = [
    ("a", "one two", "one"),
    ("b", "one", "one two three"),
    ("c", "one two three", "one two three!"),
    ("d", "one two!", "one"),
]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in PAIRS))
    return PreferenceData((Source("trl", path=str(file)),), validation=0, rewards_cache=str(tmp_path / "cache"))


def test_by_hand(data):
    mix = Mixture({"words": Words(), "calm": Pattern("!")}, {"words": 1.0, "calm": 1.0})
    rewards = {"words": Words(), "calm": Pattern("!"), "grade": Grade(), "mix": mix}
    content, columns = survey(data, rewards, {"words": 1.0, "calm": -2.0})
    assert content["prompts"] == content["pairs"] == 4 and content["responses"] == [4, 4]
    assert columns["words"].tolist() == [[2, 1, 3, 2], [1, 3, 3, 1]]
    found = content["rewards"]
    assert list(found) == ["words", "calm", "grade", "mix", "mix/words", "mix/calm", "objective"]
    assert found["words"]["chosen"]["mean"] == 2 and found["words"]["rejected"]["mean"] == 2
    assert found["words"]["chosen"]["quantiles"]["0.5"] == 2 and found["words"]["ties"] == 0.25
    assert "conflict" not in found["words"], "a length has no direction"
    # calm: pair c agrees, pair d contradicts, two tie
    assert found["calm"]["conflict"]["share"] == 0.25 and found["calm"]["ties"] == 0.5
    low, high = found["calm"]["conflict"]["low"], found["calm"]["conflict"]["high"]
    assert 0 < low < 0.25 < high < 1
    # mix: margins 2 - 1 , 1 - 3, 1, (2 + 0) - (1 + 1): one of four is against the label, one ties
    assert found["mix"]["conflict"]["share"] == 0.25 and found["mix"]["ties"] == 0.25
    # objective, words - 2 calm: margins 1, -2, (3 - 2) - 3 = -2, 2 - (1 - 2) = 3
    assert found["objective"]["conflict"]["share"] == 0.5
    assert found["objective"]["weight"] is None and found["calm"]["weight"] == -2.0
    grades = columns["grade"]
    assert found["grade"]["conflict"]["share"] == (grades[0] > grades[1]).mean(), "lower grades are better"


def test_correlations_are_spearmans(data):
    rows = np.array([[1.0, 2, 2, 9, -4, 0], [3, 1, 4, 1, 5, 9], [0, 0, 1, 1, 1, 0], [7, 7, 7, 7, 7, 7]])
    ours = rank_correlations(rows)
    for i in range(3):
        for j in range(3):
            assert ours[i, j] == pytest.approx(spearmanr(rows[i], rows[j]).statistic)
    assert np.isnan(ours[3]).all()
    holes = np.concatenate([rows[:3], rows[:1] * [1, 1, 1, math.nan, 1, 1]])
    kept = np.delete(rows[:3], 3, axis=1)
    assert rank_correlations(holes)[:3, :3] == pytest.approx(rank_correlations(kept))
    content, _ = survey(data, {"calm": Pattern("!"), "none": Pattern("zzz")}, {})
    assert content["correlations"]["names"] == ["calm", "none", "label"]
    matrix = content["correlations"]["spearman"]
    assert matrix[0][2] == pytest.approx(0.0) and matrix[1] == [None, None, None]


def test_labels_without_pairs(tmp_path):
    file = tmp_path / "labels.jsonl"
    rows = [("a", "one two", True), ("b", "one two three!", False), ("c", "one", True)]
    file.write_text("".join(json.dumps({"prompt": p, "completion": y, "label": v}) + "\n" for p, y, v in rows))
    data = PreferenceData((Source("trl", path=str(file)),), validation=0, rewards_cache=str(tmp_path / "cache"))
    content, _ = survey(data, {"calm": Pattern("!"), "words": Words()}, {"calm": 2.0, "words": 1.0})
    assert content["pairs"] == 0 and content["responses"] == [2, 1]
    assert content["rewards"]["calm"]["chosen"]["mean"] == 1 and content["rewards"]["calm"]["rejected"]["mean"] == 0
    assert content["rewards"]["objective"]["chosen"]["mean"] == 2 + 1.5 and "conflict" not in content["rewards"]["calm"]
    assert content["correlations"]["spearman"][0][-1] == pytest.approx(1)


def test_only_the_training_split_is_read(tmp_path, data):
    data.validation = 2
    content, _ = survey(data, {"words": Words()}, {})
    assert content["prompts"] == 2
    data.validation = 0
    first, second = (survey(data, {"words": Words()}, {}, limit=3)[0] for _ in range(2))
    assert first == second and first["pairs"] == 3


def test_mistakes(data, tmp_path, capsys):
    with pytest.raises(UserError, match="names no reward"):
        survey(data, {}, {})
    with pytest.raises(UserError, match=r"weighs the rewards \['safety'\]"):
        survey(data, {"words": Words()}, {"safety": 1.0})
    file = tmp_path / "one.jsonl"
    file.write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    alone = PreferenceData((Source("trl", path=str(file)),), validation=0, rewards_cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="neither pairs nor both labels"):
        survey(alone, {"words": Words()}, {})
    for args in (["--config", str(tmp_path / "nope.yaml")], ["--config", str(file)], ["--limit", "0"]):
        with pytest.raises(SystemExit) as exit_:
            main(args)
        assert exit_.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")


YAML = """
model:
  class_path: UPO
  init_args:
    policy: {{path: no/such/model}}
    reference: FrozenReference
    reward_weights: {{mix: 1.0}}
data:
  sources: [{{name: trl, path: {pairs}}}]
  validation: 0
  rewards_cache: {cache}
  rewards:
    mix:
      class_path: Mixture
      init_args:
        rewards: {{mood: Sentiment, short: {{class_path: ShortSentences, init_args: {{easy: 1, hard: 4}}}}}}
        weights: {{mood: 1, short: 0.5}}
        normalize: true
    words: Words
trainer: {{default_root_dir: {folder}}}
evaluation: {{judge: {{class_path: Pattern, init_args: {{pattern: "good"}}}}}}
"""


def test_command_before_any_model_is_there(tmp_path, capsys, data):
    config = tmp_path / "x.yaml"
    file = tmp_path / "words.jsonl"
    rows = [("a", "good", "bad day"), ("b", "so very sad", "happy"), ("c", "fine here now", "ugly!")]
    file.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in rows))
    config.write_text(YAML.format(pairs=file, cache=tmp_path / "cache", folder=tmp_path / "runs" / "x"))
    main(["--config", str(config)])
    shown = capsys.readouterr().out
    assert "training split: 3 prompts, 3 pairs" in shown and "mix/short" in shown and "conflict" in shown
    folder = tmp_path / "runs" / "x_rewards"
    content = json.loads((folder / "rewards.json").read_text())
    assert list(content["rewards"]) == ["mix", "mix/mood", "mix/short", "words", "judge"]
    assert content["rewards"]["judge"]["conflict"]["share"] == 1 / 3
    picture = (folder / "rewards.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    assert not (tmp_path / "runs" / "x").exists(), "the run folder stays free for the run"
