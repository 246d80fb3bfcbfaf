"""Chat judges: both orders, strict answers, their question, a local model."""

import re
from pathlib import Path

import pytest
import tiny
import torch

from upo.errors import UserError
from upo.judges import ChatJudge, Verdict
from upo.judges.answer import Answer
from upo.judges.chat import INSTRUCTION, combined, fill, of_answers, read_answer, read_instruction
from upo.judges.local import LocalChat


def shown(question: str) -> tuple[str, str]:
    found = re.search(r"\[Response A\]\n(.*?)\n\[End of response A\]\n\n\[Response B\]\n(.*?)\n\[End", question, re.S)
    assert found
    return found[1], found[2]


def likes_longer(question: str) -> str:
    a, b = shown(question)
    return "They differ in length.\nA" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


def test_the_better_response_wins_in_either_order(serve) -> None:
    server = serve(likes_longer)
    judge = ChatJudge("fake", server.url)
    found = judge(["q"] * 4, ["long one", "x", "ab", "same"], ["short", "longer", "cd", "same"])
    middle = {"first_place": 0.5}
    assert found == [Verdict(1.0, **middle), Verdict(0.0, **middle), Verdict(0.5, **middle), Verdict(0.5)]
    assert len(server.requests) == 6, "both orders of three pairs; equal texts are not asked"
    pairs = [shown(r["messages"][0]["content"]) for r in server.requests]
    assert {(b, a) for a, b in pairs} == set(pairs)
    assert all(r["temperature"] == 0 and r["model"] == "fake" for r in server.requests)


def test_a_judge_of_places_gives_ties_that_are_counted(serve) -> None:
    found = ChatJudge("fake", serve(lambda _: "A").url)(["q", "q"], ["a", "b"], ["c", "d"])
    assert found == [Verdict(0.5, flipped=True, first_place=1.0)] * 2
    found = ChatJudge("fake", serve(lambda _: "B").url)(["q"], ["a"], ["c"])
    assert found == [Verdict(0.5, flipped=True, first_place=0.0)]


def test_what_is_no_verdict_has_no_outcome(serve) -> None:
    server = serve(lambda q: "Response A is better." if "odd" in q else "A" if shown(q)[0] == "good" else "B")
    found = ChatJudge("fake", server.url)(["odd", "even"], ["good"] * 2, ["bad"] * 2)
    assert found == [Verdict(None), Verdict(1.0, first_place=0.5)]


@pytest.mark.parametrize(
    "text, value",
    [("A", 1.0), ("B", 0.0), ("tie", 0.5), ("Tie.", 0.5), ("[[A]]", 1.0), ("**B**", 0.0), ("because\n\nA\n", 1.0)]
    + [(x, None) for x in ("", "C", "a", "A or B", "I prefer A", "AB", "A\nsince it is nice", "TIES", "Answer: B")],
)
def test_answers_are_read_strictly(text: str, value: float | None) -> None:
    assert read_answer(text) == value


def test_two_answers_make_a_verdict() -> None:
    assert combined(1.0, 0.0) == Verdict(1.0, first_place=0.5)
    assert combined(1.0, 0.5) == Verdict(0.75, flipped=True, first_place=0.75)
    assert combined(0.5, 0.5) == Verdict(0.5, first_place=0.5)
    assert combined(None, 0.0) == combined(1.0, None) == Verdict(None)


def test_without_both_answers_there_is_a_reason() -> None:
    refused, lost = Answer(missing="too long"), Answer(missing="cut", again=True)
    assert of_answers(Answer("A"), refused) == of_answers(refused, lost) == of_answers(lost, refused)
    assert of_answers(Answer("A"), refused) == Verdict(None, unjudged="too long")
    assert of_answers(lost, Answer("B")) == Verdict(None, unjudged="cut", again=True)
    assert of_answers(Answer("A"), Answer("B")) == Verdict(1.0, first_place=0.5)


def test_braces_in_texts_mean_nothing() -> None:
    text = fill("{prompt}|{first}|{second}", "{first} {0}", "{second} \\1", "{prompt}")
    assert text == "{first} {0}|{second} \\1|{prompt}"


def test_the_instruction_ships_and_another_one_must_be_whole(tmp_path: Path) -> None:
    assert all(f"{{{name}}}" in read_instruction(INSTRUCTION) for name in ("prompt", "first", "second"))
    own = tmp_path / "own.txt"
    own.write_text("{prompt} {first}")
    with pytest.raises(UserError, match=r"lacks \{second\}"):
        ChatJudge("m", "http://x", instruction=own)
    with pytest.raises(UserError, match="cannot be read"):
        ChatJudge("m", "http://x", instruction=tmp_path / "none.txt")
    own.write_text("{prompt} {first} {second} which?")
    assert ChatJudge("m", "http://x", own).fingerprint() != ChatJudge("m", "http://x").fingerprint()


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chat")
    policy = tiny.policy(max_position_embeddings=64)
    policy.model.save_pretrained(folder)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    tiny.tokenizer(chat_template=template).save_pretrained(folder)
    return str(folder)


def test_a_local_model_answers_greedily_and_long_questions_stay_open(chat_model: str) -> None:
    ask = LocalChat(chat_model, max_tokens=8, batch_size=2)
    questions = ["Is it A?", "word " * 40, "Or rather B, the other one?"]
    answers = [answer.text for _, answer in ask(questions)]
    assert answers[1] == ""
    for i in (0, 2):
        ids = ask.tokenizer(f"<user>{questions[i]}<assistant>", add_special_tokens=False).input_ids
        new: list[int] = []
        while len(new) < 8 and new[-1:] != [ask.tokenizer.eos_token_id]:
            new.append(int(ask.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        assert answers[i] == ask.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_a_local_judge_asks_both_orders(chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.txt"
    own.write_text("{prompt}:{first}/{second}?")
    judge = ChatJudge(chat_model, instruction=own, max_tokens=4)
    assert judge(["q"], ["a"], ["b"]) == [Verdict(None)], "random weights say nothing that can be read"
    asked: list[str] = []
    monkeypatch.setattr(LocalChat, "_ask", lambda self, questions: asked.extend(questions) or ["A", "B"])
    assert judge(["q"], ["a"], ["b"]) == [Verdict(1.0, first_place=0.5)]
    assert asked == ["q:a/b?", "q:b/a?"]
