"""A judge behind an endpoint within an evaluation: what is paid for is kept, what is missing is counted and said."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from judge_server import Reply, Server

from upo.data.example import Example, Response
from upo.errors import UserError
from upo.evaluation.judging import by_judge
from upo.evaluation.measure import text_figures
from upo.judges import ChatJudge

SHOWN = re.compile(r"\[Response A\]\n(.*?)\n\[End of response A\]\n\n\[Response B\]\n(.*?)\n\[End", re.S)
N = 30


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., ChatJudge]:
    def make(server: Server, **more) -> ChatJudge:
        options = {"cache": str(tmp_path / "verdicts"), "parallel": 2, "retries": 0}
        return ChatJudge("fake", server.url, **options | more)

    return make


def longer(question: str) -> str:
    found = SHOWN.search(question)
    assert found
    a, b = found.groups()
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


def judged(judge: ChatJudge, folder: Path) -> tuple[dict[str, list[dict[str, float]]], list[str]]:
    """30 prompts; the policy's responses to the first ten are the reference's, too."""
    asked = [Example(f"prompt {i}", (Response("x"),)) for i in range(N)]
    texts = {
        "policy": ["y" * (i + 1) for i in range(N)],
        "reference": ["y" * (i + 1) if i < 10 else "zz" for i in range(N)],
        "chosen": ["c" * 15 for _ in range(N)],
    }
    values = {name: [{} for _ in range(N)] for name in texts}
    return values, by_judge(judge, asked, texts, values, folder / "partial")


def test_a_server_that_dies_loses_nothing_and_a_finished_evaluation_asks_nothing(
    serve, judge, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    alive = [40]
    seen = []

    def answer(question: str) -> Reply:
        seen.append(question)
        return longer(question) if len(seen) <= alive[0] else None

    server = serve(answer)
    with pytest.raises(UserError, match="answered none of 8 questions"):
        judged(judge(server), tmp_path)
    lines = next((tmp_path / "verdicts").glob("*.jsonl")).read_text().split("\n")
    assert len([line for line in lines if line]) >= 40 // 2 - 1, "each verdict, but that whose other half was cut off"
    capsys.readouterr()

    alive[0], before = 10**9, len(seen)
    values, remarks = judged(judge(server), tmp_path)
    different = N + (N - 10) + (N - 10)  # policy and reference against chosen, equal texts once; against each other
    assert len(seen) - before <= 2 * different - (40 - 2) and not remarks
    said = capsys.readouterr().out
    assert f"{len(seen) - before} requests, about " in said and f"at most {256 * (len(seen) - before)} out" in said

    asked = len(seen)
    again, _ = judged(judge(server), tmp_path)
    assert again == values and len(seen) == asked and not (tmp_path / "partial").exists()
    assert "requests" not in capsys.readouterr().out
    expected = [1.0 if i > 14 else 0.5 if i == 14 else 0.0 for i in range(N)]
    assert [row["win_rate_vs_chosen"] for row in values["policy"]] == expected
    assert {row["win_rate_vs_reference"] for row in values["policy"][:10]} == {0.5}


def test_other_options_or_texts_are_asked_anew(serve, judge, tmp_path: Path) -> None:
    server = serve(longer)
    judged(judge(server), tmp_path)
    asked = len(server.requests)
    judged(judge(server, request={"seed": 1}), tmp_path)
    assert len(server.requests) == 2 * asked
    judged(judge(server, parallel=4, timeout=9), tmp_path)
    assert len(server.requests) == 2 * asked, "what cannot change a verdict asks nothing"
    judged(judge(server, cache=None), tmp_path)
    assert len(server.requests) == 3 * asked and (tmp_path / "partial").exists()


def test_refused_pairs_are_counted_with_their_reason_and_lost_ones_asked_again(serve, judge, tmp_path: Path) -> None:
    filtered = {"state": 400, "error": {"message": "no", "code": "content_filter"}}
    busy = [True]

    def answer(question: str) -> Reply:
        if "prompt 3\n" in question:
            return filtered
        return 529 if "prompt 20\n" in question and busy[0] else "no idea" if "prompt 25\n" in question else "A"

    server = serve(answer)
    values, remarks = judged(judge(server), tmp_path)
    figures = text_figures(values, {name: ["x"] * N for name in values})
    assert figures["policy/unjudged_vs_chosen"] == pytest.approx(2 / N)
    assert figures["policy/unparsed_vs_chosen"] == pytest.approx(1 / N)
    assert figures["policy/win_rate_vs_chosen_n"] == N - 3 and figures["policy/first_place_vs_chosen"] == 1.0
    assert remarks[0].startswith(
        "policy against chosen: 2 of 30 pairs were not judged (1 times HTTP 400: content_filter;"
    )
    assert "1 times no answer after 1 requests (HTTP 529" in remarks[0]
    assert remarks[1].startswith("policy against chosen: the judge always answers A")
    busy[0], before = False, len(server.requests)
    values, remarks = judged(judge(server), tmp_path)
    assert len(server.requests) - before == 2 * 3, "prompt 20, both orders, in three comparisons"
    assert remarks[0] == "policy against chosen: 1 of 30 pairs were not judged (1 times HTTP 400: content_filter)"


def test_more_requests_than_allowed_are_refused_before_the_first(serve, judge, tmp_path: Path) -> None:
    server = serve(longer)
    with pytest.raises(UserError, match="asked 140 times, more often than max_requests 139"):
        judged(judge(server, max_requests=139), tmp_path)
    assert not server.requests
    judged(judge(server, max_requests=140), tmp_path)
    assert len(server.requests) == 140
