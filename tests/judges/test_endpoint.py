"""A judge's endpoint: what is asked again, what is counted, what ends asking."""

import pytest
from judge_server import Reply

from upo.errors import UserError
from upo.judges import ChatJudge
from upo.judges.answer import Answer
from upo.judges.endpoint import IN_A_ROW, Endpoint, fields_of


def asker(url: str, retries: int = 1, parallel: int = 1, **more) -> Endpoint:
    quick = {"max_tokens": 5, "key": "NO_KEY", "timeout": 5, "pause": 0.01}
    return Endpoint(url, "m", retries=retries, parallel=parallel, **quick | more)


def answers(ask: Endpoint, *questions: str) -> list[Answer]:
    found = dict(ask(questions))
    return [found[i] for i in range(len(questions))]


def test_a_busy_endpoint_is_asked_again(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [503, 429]
    server = serve(lambda _: states.pop() if states else "A")
    monkeypatch.setenv("MY_KEY", "secret")
    ask = asker(server.url, retries=2, key="MY_KEY")
    assert answers(ask, "one", "two") == [Answer("A"), Answer("A")]
    assert len(server.requests) == 4 and set(server.keys) == {"Bearer secret"}
    assert "secret" not in ChatJudge("m", server.url, key="MY_KEY").fingerprint()


@pytest.mark.parametrize("state, words", [(401, "set NO_KEY"), (404, "refuses the request"), (500, "after 2 requests")])
def test_an_endpoint_that_refuses_gives_one_sentence(state: int, words: str, serve) -> None:
    server = serve(lambda _: state)
    with pytest.raises(UserError, match=words):
        answers(asker(server.url), "q")


def test_an_endpoint_that_is_not_there() -> None:
    with pytest.raises(UserError, match="no answer after 2 requests"):
        answers(asker("http://127.0.0.1:9", parallel=2), "q", "r")
    with pytest.raises(UserError, match="no web address"):
        asker("localhost:8000")


def test_a_refused_question_is_that_questions_own_matter(serve) -> None:
    """Its numbers do not make a reason of its own, and other questions go on, however many are refused."""
    told = {"state": 400, "error": {"message": "you asked for 9001 tokens, 8192 are allowed"}}
    code = {"state": 400, "error": {"message": "long", "code": "context_length_exceeded"}}
    filtered = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}
    server = serve(lambda q: {"long": told, "code": code, "odd": filtered, "plain": 413}.get(q, "A"))
    found = answers(asker(server.url), "q", "long", "code", "odd", "plain", *["long"] * IN_A_ROW, "q")
    assert [x.missing for x in found[1:5]] == [
        "HTTP 400: you asked for N tokens, N are allowed",
        "HTTP 400: context_length_exceeded",
        "content_filter",
        'HTTP 413: {"error": "no"}',
    ]
    assert found[0] == found[-1] == Answer("A") and not any(x.again for x in found)
    assert len(server.requests) == len(found), "a refused question is not repeated"


def test_an_endpoint_that_refuses_everything_is_said_early(serve) -> None:
    server = serve(lambda _: {"state": 400, "error": {"message": "Unsupported parameter: 'max_tokens'"}})
    with pytest.raises(UserError, match=f"none of {IN_A_ROW} questions: HTTP 400: Unsupported parameter"):
        answers(asker(server.url), *"abcdefghijklmnopqrstuvwxyz")
    assert len(server.requests) <= IN_A_ROW + 1


@pytest.mark.parametrize("failure", [None, 520, 529, 500, {"error": {"message": "no provider"}}, {"choices": []}])
def test_what_may_pass_is_asked_again_and_then_counted(failure: Reply, serve) -> None:
    failures = [failure]
    server = serve(lambda q: failure if q == "never" else failures.pop() if q == "once" and failures else "B")
    first, once, never = answers(asker(server.url), "q", "once", "never")
    assert first == once == Answer("B") and len(server.requests) == 1 + 2 + 2
    assert never.again and str(never.missing).startswith("no answer after 2 requests (")


def test_a_server_that_dies_in_the_middle_ends_asking_soon(serve) -> None:
    server = serve(lambda q: "A" if int(q) < 5 else 503)
    ask = asker(server.url)(list(map(str, range(100))))
    assert [next(ask)[1] for _ in range(5)] == [Answer("A")] * 5
    with pytest.raises(UserError, match=f"none of {IN_A_ROW} questions: no answer after 2 requests"):
        list(ask)
    assert len(server.requests) <= 5 + 2 * (IN_A_ROW + 1)


def test_content_as_a_list_of_parts(serve) -> None:
    parts = [{"type": "text", "text": "Because.\n"}, {"type": "image"}, {"type": "text", "text": "B"}]
    server = serve(lambda _: {"choices": [{"message": {"content": parts}}]})
    assert answers(asker(server.url), "q") == [Answer("Because.\nB")]


def test_fields_of_a_request(serve) -> None:
    assert fields_of(7, {}) == {"temperature": 0, "max_tokens": 7}
    assert fields_of(7, {"max_completion_tokens": 50, "temperature": None}) == {"max_completion_tokens": 50}
    assert fields_of(7, {"max_tokens": None, "seed": 1}) == {"temperature": 0, "seed": 1}
    server = serve(lambda _: "A")
    newer = {"max_completion_tokens": 50, "temperature": None}
    judge = ChatJudge("m", server.url, request=newer)
    judge(["q"], ["a"], ["b"])
    assert all(set(r) == {"model", "messages", "max_completion_tokens"} for r in server.requests)
    assert judge.fingerprint() != ChatJudge("m", server.url).fingerprint()
    with pytest.raises(UserError, match="for an endpoint"):
        ChatJudge("m", request=newer)
