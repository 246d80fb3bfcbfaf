"""The synthetic world: what its data look like, and that its measures say what they claim on any text."""

import statistics

import pytest
from tiny import examples_of

from upo.data.chat_format import render
from upo.data.report import DataReport, SourceReport
from upo.data.source import Source
from upo.data.sources.world import preference, reading, safety, tokenizer, valid_sentence_share, world
from upo.data.tokenize import Encoder
from upo.data.views import DemonstrationView
from upo.errors import UserError
from upo.rewards import Function, Readability

ASK = ({"role": "user", "content": "How do I clean my old bike before winter?"},)


def make(**options):
    return list(world([], SourceReport(), **options))


@pytest.fixture(scope="module")
def train():
    return make()


def columns(measure, examples):
    """The measure of the preferred and of the other responses."""
    values = [measure([e.prompt] * 2, [r.text for r in e.responses]) for e in examples]
    return [v[0] for v in values], [v[1] for v in values]


@pytest.mark.turns(2)
def test_prompts_are_unique_and_tests_are_held_out(train):
    test = make(split="test", n=1000, seed=5)
    prompts = [[e.prompt[0]["content"] for e in examples] for examples in (make(n=8216), test)]
    assert len(set(prompts[0])) == 8216 and len(set(prompts[1])) == 1000
    assert not set(prompts[0]) & set(prompts[1])
    for options in ({"n": 0}, {"n": 8217}, {"n": 1001, "split": "test"}, {"noise": 0.5}, {"noise": -0.1}):
        with pytest.raises(UserError, match="world:"):
            make(**options)


def test_same_seed_same_world():
    first = make(n=500)
    assert make(n=500) == first
    assert make(seed=1, n=500) != first


def test_without_ranks_every_answer_is_a_demonstration(train):
    plain = make(ranked=False, n=100)
    assert [[r.text for r in e.responses] for e in plain] == [[r.text for r in e.responses] for e in make(n=100)]
    assert sum(len(examples_of(DemonstrationView(), e, 1)) for e in plain) == 200
    assert sum(len(examples_of(DemonstrationView(), e, 1)) for e in train[:100]) == 100


def test_shape_of_answers(train):
    words = [len(r.text.split()) for e in train for r in e.responses]
    assert min(words) >= 8 and max(words) <= 30
    assert all([r.rank for r in e.responses] == [0.0, 1.0] for e in train)
    assert all(valid_sentence_share([e.prompt] * 2, [r.text for r in e.responses]) == [1, 1] for e in train)


def test_labels_follow_preference_but_for_the_noise():
    report = SourceReport()
    chosen, rejected = columns(preference, list(world([], report)))
    swapped = sum(a < b for a, b in zip(chosen, rejected, strict=True))
    assert swapped == report.altered.total() and 0.035 < swapped / 4000 < 0.065
    assert min(abs(a - b) for a, b in zip(chosen, rejected, strict=True)) >= 0.25 - 1e-9
    chosen, rejected = columns(preference, make(noise=0.0))
    assert all(a > b for a, b in zip(chosen, rejected, strict=True))


def test_objectives_conflict_with_labels_agree_and_tie(train):
    chosen, rejected = columns(safety, train)
    shares = [sum(sign * (a - b) > 0 for a, b in zip(chosen, rejected, strict=True)) / 4000 for sign in (-1, 1)]
    assert 0.27 < shares[0] < 0.33, "conflict"
    assert 0.15 < shares[1] < 0.25, "agreement"
    assert statistics.mean(chosen) < statistics.mean(rejected) - 0.05
    assert statistics.mean(columns(reading, train)[0]) < statistics.mean(columns(reading, train)[1])


def test_danger_can_partly_be_foreseen(train):
    def mean(verb):
        texts = [r.text for e in train if f" {verb} my" in e.prompt[0]["content"] for r in e.responses]
        return statistics.mean(safety(texts, texts))

    assert mean("grow") > mean("fix") + 0.2


def test_preference_by_hand():
    flattery, cold = "Your extraordinary curiosity is admirable!", "There is a simple way."
    tip, other = "Wash the bike with some soap for ten minutes.", "Heat the soup with a big pan for two days."
    vague = "Do something with the bike until it looks about right."
    safe, unsafe = "Be bold and sing while you work!", "Be bold and skip the gloves!"
    calm = "You may also skip the gloves."
    worth = {
        f"{flattery} {tip} {unsafe}": 0.25 + 0.3 + 0.25 + 0.2,
        f"{cold} {tip} {safe}": 0.1 + 0.3 + 0.25 + 0.175,
        f"{flattery} {other} {calm}": 0.25 + 0.25,
        f"{vague}": 0.3,
        f"{tip} {tip} {safe} {unsafe}": 0.3 + 0.25 + 0.175,
        tip.lower(): 0,
        "soup bike gloves": 0,
        "": 0,
    }
    assert preference([ASK] * len(worth), list(worth)) == pytest.approx(list(worth.values()))
    assert preference(["Anything about a bike"], [tip]) == [0.55]


def test_safety_and_reading_by_hand():
    texts = ["Go on and skip the gloves!", "MIX ALL THE CLEANERS and skip the gloves", "Wash the bike.", ""]
    assert safety([ASK] * 4, texts) == [0.5, 0, 1, 1]
    hard = ["utilize it", "Utilize approximately. magnificent", "utilize " * 9, "use it"]
    assert reading([ASK] * 4, hard) == [0.75, 0.25, 0, 1]


def test_valid_share_by_hand():
    texts = [
        "There is a simple way. Wash the soup with some soap for ten minutes.",
        "!!",
        "",
        "There is a simple way",
    ]
    assert valid_sentence_share([ASK] * 4, texts) == [0.5, 0, 0, 0]


@pytest.mark.parametrize("name", ["preference", "safety", "reading", "valid_sentence_share"])
def test_measures_are_rewards_and_take_any_text(name):
    garbage = ["", " ", "....", "\x00\n\n", "日本語。", "the the the", "a" * 10_000, "Be bold and", "? ? ?"]
    values = Function(f"upo.data.sources.world:{name}")([ASK] * len(garbage), garbage)
    assert all(0 <= v <= 1 for v in values)
    if name in ("preference", "valid_sentence_share"):
        assert set(values) == {0.0}


def test_reading_agrees_with_the_real_formulas(train):
    texts = [r.text for e in train[:300] for r in e.responses]
    assert statistics.correlation(reading(texts, texts), Readability()(texts, texts)) > 0.5


def test_tokenizer(train, tmp_path):
    made = tokenizer()
    assert 300 < len(made) < 512
    assert made.get_vocab() == tokenizer().get_vocab()
    encoder, report = Encoder(made), DataReport()
    assert encoder.bos == made.bos_token_id and encoder.eos == made.eos_token_id
    made.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for example, tokens in zip(train[:200], encoder.encode(train[:200], report), strict=True):
        assert tokens.prompt[0] == made.bos_token_id and tokens.prompt.count(made.bos_token_id) == 1
        for response, ids in zip(example.responses, tokens.responses, strict=True):
            assert ids[-1] == made.eos_token_id and made.unk_token_id not in [*tokens.prompt, *ids]
            assert made.decode(ids[:-1]) == response.text
            assert len(tokens.prompt) + len(ids) <= 64
            assert loaded(response.text, add_special_tokens=False).input_ids == ids[:-1]
        assert render(loaded, example.prompt) == made.decode(tokens.prompt)
    assert not report.sources, "no token differs from the whole text's"


def test_as_a_source():
    report = DataReport()
    examples = Source("world", options={"n": 50}).examples(report)
    assert len(examples) == 50 and examples[0].source == "world"
    with pytest.raises(UserError, match="no option `number`"):
        Source("world", options={"number": 50}).examples(report)
