"""Mixtures: the sum by hand, its scale learned on the training split alone, and the same one after a resume."""

import json
import random
from statistics import fmean, pstdev

import pytest
import tiny
import torch
from test_annotate import Spy
from training import fit, make

from upo.data.example import Example, Response
from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.errors import UserError
from upo.evaluate import Evaluation
from upo.evaluation.measure import both_sides, fit_rewards
from upo.methods import UPO
from upo.rewards import Mixture, Pattern, Similarity, Words, annotate


def example(prompt, *texts):
    return Example(prompt, tuple(Response(t, rank=float(i)) for i, t in enumerate(texts)))


TRAIN = [example("p", "one two three", "one"), example("q", "one! two", "one two!")]
HELD_OUT = [example("h", "one two three four!", "no")]


def mixture(**options) -> Mixture:
    members = {"words": Words(), "calm": Pattern("!")}
    return Mixture(members, {"words": 0.5, "calm": -2.0}, **options)


def test_by_hand_with_the_members_beside_the_sum(tmp_path):
    (first, _) = annotate(TRAIN, {"mix": mixture()}, tmp_path)
    # 0.5 * 3 - 2 * 1, 0.5 * 1 - 2 * 1
    assert first.responses[0].rewards == {"mix": -0.5, "mix/words": 3.0, "mix/calm": 1.0}
    assert first.responses[1].rewards == {"mix": -1.5, "mix/words": 1.0, "mix/calm": 1.0}
    assert mixture()(["p"], ["one two three"]) == [-0.5]


def test_normalised_by_hand():
    reward = mixture(normalize=True)
    assert reward.unfitted
    reward.fit(TRAIN, HELD_OUT)
    # words 3, 1, 2, 2: mean 2, deviation sqrt(1/2); calm 1, 1, 0, 0: mean 1/2, deviation 1/2
    assert reward.scales == {"words": (2.0, pytest.approx(0.5**0.5)), "calm": (0.5, 0.5)}
    assert not reward.unfitted
    values = reward(["p", "h"], ["one two three", "a b!"])
    assert values == pytest.approx([0.5 * 2**0.5 - 2 * 1, 0.5 * 0 - 2 * -1])
    own = [r.rewards for e in annotate(TRAIN, {"mix": reward}) for r in e.responses]
    assert fmean(r["mix"] for r in own) == pytest.approx(0) and own[0]["mix/words"] == 3.0


def test_scale_does_not_depend_on_order_or_batches():
    """To the bit, or a resumed run would train on other numbers."""
    rng = random.Random(0)
    texts = ["w " * rng.randrange(1, 90) + str(i) for i in range(300)]
    scales = set()
    for _ in range(5):
        reward = Mixture({"x": Words(), "y": Spy()}, {"x": 1, "y": 1}, normalize=True)
        rng.shuffle(texts)
        reward.fit([example("p", *texts[:120]), example("p", *texts[120:])], [])
        scales.add(str(reward.scales))
    assert len(scales) == 1
    column = [len(t) / 3 for t in texts]
    assert reward.scales["y"] == (pytest.approx(fmean(column)), pytest.approx(pstdev(column)))


def test_state_goes_through_json_and_into_nested_members():
    def nested() -> Mixture:
        return Mixture({"in": mixture(normalize=True), "words": Words()}, {"in": 1.0, "words": 0.1}, normalize=True)

    first, second = nested(), nested()
    first.fit(TRAIN, HELD_OUT)
    second.restore(json.loads(json.dumps(first.state())))
    assert not second.unfitted and second.fingerprint() == first.fingerprint() != nested().fingerprint()
    texts = ["a b c", "!"]
    assert second(["x"] * 2, texts) == first(["x"] * 2, texts)
    assert set(annotate(TRAIN, {"m": first})[0].responses[0].rewards) == {
        "m", "m/in", "m/words", "m/in/words", "m/in/calm",
    }  # fmt: skip
    other = mixture(normalize=True)
    other.restore({"words.mean": 0.0, "words.deviation": 1.0})  # of another mixture: not half of it
    assert other.unfitted


def test_members_are_measured_once_whoever_uses_them(tmp_path):
    spy, again = Spy(), Spy()
    reward = Mixture({"a": spy, "b": Words()}, {"a": 1, "b": 1}, normalize=True)
    reward.fit(TRAIN, HELD_OUT, tmp_path)
    first = annotate(TRAIN, {"mix": reward}, tmp_path)
    assert len(spy.seen) == 4
    other = Mixture({"a": again, "b": Words()}, {"a": 3, "b": -1})
    done = annotate(TRAIN, {"mix": other, "alone": again}, tmp_path)
    assert again.seen == [] and done[0].responses[0].rewards["alone"] == first[0].responses[0].rewards["mix/a"]


def test_members_that_must_see_the_data_do():
    reward = Mixture({"rouge": Similarity(), "words": Words()}, {"rouge": 1, "words": 0})
    assert reward.unfitted
    reward.fit(TRAIN, HELD_OUT)
    assert not reward.unfitted and reward(["h"], ["one two three four!"]) == [1.0]


def test_mistakes():
    with pytest.raises(UserError, match="one weight a reward"):
        Mixture({"words": Words()}, {"word": 1.0})
    with pytest.raises(UserError, match="one weight a reward"):
        Mixture({}, {})
    with pytest.raises(UserError, match="`normalize` needs a training split"):
        mixture(normalize=True)(["p"], ["x"])
    constant = Mixture({"no": Pattern("zzz")}, {"no": 1.0}, normalize=True)
    with pytest.raises(UserError, match="`no` is 1 for every training response"):
        constant.fit(TRAIN, [])


# ---- in a run ------------------------------------------------------------------------------------------------------


def options(folder, limit=None, **more) -> dict:
    """Of a run on a mixture; two of eight prompts are held out."""
    return {
        "rewards": {"mix": mixture(normalize=True), "unused": Words()},
        "rewards_cache": str(folder / f"cache{random.random()}"),
        "validation": 2,
    } | more


def upo():
    return make(UPO, reward_weights={"mix": 1.0}, value_dropout=0.0, value_warmup_steps=1, lam=0.2)


def pairs(folder, prompts=tiny.PAIRS) -> str:
    file = folder / f"pairs{len(prompts)}.jsonl"
    rows = [{"prompt": p, "chosen": c, "rejected": r + "!" * (len(r) % 2)} for p, c, r in prompts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_resume_and_evaluation_use_the_scale_of_the_training(tmp_path):
    given = {"source": "trl", "pairs": pairs(tmp_path)}
    whole = fit(upo(), tmp_path, steps=4, **given, **options(tmp_path))
    fit(upo(), tmp_path, steps=4, stop_at=3, save_every=2, **given, **options(tmp_path))
    late = fit(upo(), tmp_path, steps=4, ckpt_path=str(tmp_path / "step=2.ckpt"), **given, **options(tmp_path))
    assert late.watch.losses == {step: whole.watch.losses[step] for step in (2, 3)}
    train = [r.text for e in both_sides(whole.data)[0] for r in e.responses]
    scale = whole.data.rewards["mix"].scales
    assert len(train) == 12 and scale["words"][0] == pytest.approx(fmean(len(t.split()) for t in train))

    saved = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["PreferenceData"]["rewards"]
    fresh = PreferenceData((Source("trl", path=given["pairs"]),), **options(tmp_path))
    fresh.rewards["mix"].restore(saved["mix"])
    assert fresh.rewards["mix"].scales == scale and list(saved) == ["mix"]
    other = PreferenceData((Source("trl", path=given["pairs"]),), **options(tmp_path))
    fit_rewards(other.rewards, other)  # without a checkpoint: from the data, held-out prompts left out
    assert other.rewards["mix"].scales == scale

    settings = Evaluation(prompts=2, max_new_tokens=4, samples=0, objective={"mix": 1.0})
    figures = settings.run(whole.method, fresh, tmp_path)
    assert {"policy/rewards/mix", "policy/rewards/mix/words", "chosen/rewards/mix/calm"} <= figures.keys()


def test_resume_with_other_data_is_refused(tmp_path):
    fit(upo(), tmp_path, steps=2, save_every=2, source="trl", pairs=pairs(tmp_path), **options(tmp_path))
    fewer = pairs(tmp_path, tiny.PAIRS[:7])
    with pytest.raises(UserError, match=r"`data.rewards.mix` is no longer what this run began with"):
        fit(
            upo(), tmp_path, steps=4, ckpt_path=str(tmp_path / "step=2.ckpt"), source="trl", pairs=fewer,
            **options(tmp_path),
        )  # fmt: skip
