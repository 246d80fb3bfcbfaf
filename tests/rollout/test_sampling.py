"""Sampling: the right distribution, whatever the batches, and nothing else touched."""

import warnings

import pytest
import tiny
import torch

from upo.data.tokenize import Encoder
from upo.errors import UserError
from upo.models.checkpoint import load_model
from upo.rollout.ends import warn_unended
from upo.rollout.sampling import Completion, draw, sample
from upo.runtime.collectives import Ranks

PROMPTS = [
    "How do I bake bread?",
    "Why",
    "Name a colour, any colour that you like, please.",
    "Say hello.",
] * 3


@pytest.fixture(scope="module")
def policy():
    return tiny.policy()


def ids(groups):
    return [[s.ids for s in group] for group in groups]


def test_batches_do_not_matter(policy) -> None:
    def run(size: int):
        return sample(policy.model, policy.tokenizer, PROMPTS, responses=2, max_new_tokens=12, batch_size=size, seed=3)

    assert ids(run(1)) == ids(run(5)) == ids(run(64))
    assert all(
        s.prompt_ids == Encoder(policy.tokenizer).prompts([p])[0]
        for p, g in zip(PROMPTS, run(5), strict=True)
        for s in g
    )


def test_ranks_share_the_responses(policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writes its part, and has all of them afterwards."""
    from upo.rollout import sampling

    settings = {"responses": 3, "max_new_tokens": 8, "batch_size": 2, "seed": 3}
    parts: list[dict] = []
    monkeypatch.setattr(sampling, "gather_objects", lambda own, ranks: (parts.append(own), parts)[1])
    for rank in range(3):
        if rank == 2:
            found = sample(policy.model, policy.tokenizer, PROMPTS[:5], ranks=Ranks(2, 3), **settings)
        else:
            with pytest.raises(KeyError):  # until the others are there
                sample(policy.model, policy.tokenizer, PROMPTS[:5], ranks=Ranks(rank, 3), **settings)
    assert [len(part) for part in parts] == [5, 5, 5]
    monkeypatch.undo()
    assert ids(found) == ids(sample(policy.model, policy.tokenizer, PROMPTS[:5], **settings))


def test_seeds_and_responses_differ(policy) -> None:
    first, again, other = (
        sample(policy.model, policy.tokenizer, PROMPTS, responses=2, max_new_tokens=12, seed=s) for s in (1, 1, 2)
    )
    assert ids(first) == ids(again) != ids(other)
    assert all(a.ids != b.ids for a, b in first)


def test_greedy_takes_the_likeliest_token(policy) -> None:
    found = sample(policy.model, policy.tokenizer, PROMPTS[:4], max_new_tokens=6, temperature=0)
    for (s,), prompt in zip(found, Encoder(policy.tokenizer).prompts(PROMPTS[:4]), strict=True):
        text = list(prompt)
        for token in s.ids:
            assert policy.model(input_ids=torch.tensor([text])).logits[0, -1].argmax() == token
            text.append(token)


def test_draws_follow_the_nucleus() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 3.0, 0.0, 2.0, -4.0])
    numbers = torch.rand(40_000)
    found = draw(logits.expand(len(numbers), -1), numbers, temperature=0.7, top_p=0.9)
    share = torch.bincount(found, minlength=5) / len(numbers)
    probability = (logits / 0.7).softmax(-1)
    kept = torch.tensor([False, True, False, True, False])
    assert probability[[1]].sum() < 0.9 < probability[[1, 3]].sum()  # two tokens make the nucleus
    expected = torch.where(kept, probability, 0) / probability[kept].sum()
    assert share == pytest.approx(expected, abs=0.01)
    everything = draw(logits.expand(len(numbers), -1), numbers, temperature=1.0, top_p=1.0)
    assert torch.bincount(everything, minlength=5) / len(numbers) == pytest.approx(logits.softmax(-1), abs=0.01)


def test_extreme_numbers_stay_in_the_vocabulary() -> None:
    logits = torch.tensor([[0.0, -200.0, 0.0]] * 3)
    found = draw(logits, torch.tensor([0.0, 0.5, 1 - 2**-24]), temperature=1.0, top_p=1.0)
    assert set(found.tolist()) <= {0, 2}


def test_nothing_else_is_touched(policy) -> None:
    policy.model.train()
    policy.model.generation_config.repetition_penalty = 9.0
    plain = tiny.policy()
    state = torch.get_rng_state()
    found = sample(policy.model, policy.tokenizer, PROMPTS, max_new_tokens=12)
    assert torch.equal(state, torch.get_rng_state())
    assert policy.model.training and policy.model.generation_config.repetition_penalty == 9.0
    assert ids(found) == ids(sample(plain.model, plain.tokenizer, PROMPTS, max_new_tokens=12))


def test_eos_ends_a_response(policy) -> None:
    eos = policy.tokenizer.eos_token_id
    found = [g[0] for g in sample(policy.model, policy.tokenizer, ["Say"] * 200, max_new_tokens=60, temperature=2)]
    ended = [s for s in found if s.finish_reason == "stop"]
    assert 5 < len(ended) < 195
    assert all(s.ids[-1] == eos and eos not in s.ids[:-1] for s in ended)
    assert all(len(s.ids) == 60 and eos not in s.ids for s in found if s.finish_reason == "length")
    assert not any("<|" in s.text for s in found)


@pytest.mark.parametrize(("ended", "warned"), [(0, True), (1, True), (2, False)])
def test_responses_that_never_end_are_warned_about(ended: int, warned: bool) -> None:
    """Below one of fifty."""
    drawn = [Completion([1], [5, 2], "x", "stop" if i < ended else "length") for i in range(100)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_unended("the policy", drawn, 16)
    assert [f"{ended} of 100 responses of the policy ended within 16 tokens" in str(w.message) for w in caught] == (
        [True] * warned
    )


def test_a_long_prompt_is_cut_on_the_left(policy) -> None:
    ((s,),) = sample(policy.model, policy.tokenizer, ["bread " * 200], max_new_tokens=28)
    whole = Encoder(policy.tokenizer).prompts(["bread " * 200])[0]
    assert s.prompt_ids == whole[-100:]  # a context of 128
    with pytest.raises(UserError, match="leaves no room"):
        sample(policy.model, policy.tokenizer, ["bread"], max_new_tokens=127)


def test_a_text_becomes_the_same_tokens_again(stories260k: str) -> None:
    """What is sampled must train as it was sampled, with the space that it begins with."""
    model, tokenizer = load_model(stories260k)
    encoder = Encoder(tokenizer)
    prompts = ["Once upon a time, there was a little", "Lily and Tom went to the park."] * 20
    found = [g[0] for g in sample(model, tokenizer, prompts, max_new_tokens=24)]
    assert sum(s.text.startswith(" ") for s in found) > 30
    same = [encoder.responses([s.text])[0][: len(s.ids)] == s.ids for s in found]
    assert sum(same) >= 30  # a model may spell a word in another way than its tokenizer
    assert all(s.prompt_ids[0] == tokenizer.bos_token_id and s.prompt_ids[1] != s.prompt_ids[0] for s in found)


def test_a_conversation_gets_its_text_without_outer_space(stories260k: str) -> None:
    model, tokenizer = load_model(stories260k)
    prompt = ({"role": "user", "content": "Tell me a story."},)
    found = [g[0] for g in sample(model, tokenizer, [prompt] * 8, max_new_tokens=16)]
    assert all(s.text == s.text.strip() for s in found)
    assert tokenizer.decode(found[0].prompt_ids, skip_special_tokens=True).endswith("Assistant:")
