"""Questions to an OpenAI-compatible endpoint (`/chat/completions`), several at a time."""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from threading import Event
from typing import Any

from upo.errors import UserError
from upo.judges.answer import Answer

BUSY = (408, 409, 425, 429)
"""HTTP states after which, as after every one from 500 on, the same request may succeed."""
NO_ACCESS = (401, 402)
NOT_THERE = (404, 405, 410)
LONGEST_PAUSE = 60.0
IN_A_ROW = 8
"""Questions without an answer, one after another, that mean that no further one would get any."""


class Endpoint:
    """Asks `model` at `url`; answers come as they are there, each with its question's place.

    A question that is refused (too long for the model, a content filter), or that gets no answer after all
    repetitions, has an `Answer` that says so. Where that is not the question's fault, asking ends.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_tokens: int,
        parallel: int,
        key: str,
        timeout: float,
        retries: int,
        request: Mapping[str, Any] | None = None,
        pause: float = 1.0,
    ):
        """
        Args:
            key: environment variable with the key; read when asking, never stored.
            request: further fields of a request's body, see `fields_of`.
            pause: seconds before the first repetition; each further one waits twice as long.
        """
        if not url.startswith(("http://", "https://")):
            raise UserError(f"the judge's endpoint `{url}` is no web address; write e.g. http://localhost:8000/v1")
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.fields = {"model": model} | fields_of(max_tokens, request or {})
        self.parallel, self.key, self.timeout, self.retries, self.pause = parallel, key, timeout, retries, pause

    def __call__(self, questions: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """
        Raises:
            UserError: no access, nothing at this address, or no answer to any question, or to many in a row.
        """
        threads, ended, answered, in_a_row = ThreadPoolExecutor(self.parallel), Event(), False, 0
        try:
            places = {threads.submit(self._ask, question, ended): i for i, question in enumerate(questions)}
            for asked in as_completed(places):
                answer = asked.result()
                answered |= answer.missing is None
                # once something was answered, a refused question is that question's own matter
                in_a_row = in_a_row + 1 if answer.missing and (answer.again or not answered) else 0
                if in_a_row == IN_A_ROW:
                    raise UserError(f"the judge at {self.url} answered none of {IN_A_ROW} questions: {answer.missing}")
                if not answered and answer.again and in_a_row == len(questions):
                    raise UserError(f"the judge at {self.url} gave {answer.missing}")
                yield places[asked], answer
        finally:
            ended.set()
            threads.shutdown(cancel_futures=True)  # after an error, what is not asked yet stays unasked

    def _ask(self, question: str, ended: Event) -> Answer:
        body = self.fields | {"messages": [{"role": "user", "content": question}]}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        reason, attempts = "nothing", 0
        while attempts <= self.retries and not ended.is_set():
            wait = min(self.pause * 2**attempts, LONGEST_PAUSE)
            attempts += 1
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return _answer(json.load(reply))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {_said(error)}"
                if error.code in NO_ACCESS:
                    raise UserError(f"the judge at {self.url} refuses access ({reason}); set {self.key}") from None
                if error.code in NOT_THERE:
                    raise UserError(f"the judge at {self.url} refuses the request: {reason}") from None
                if error.code not in BUSY and error.code < 500:
                    return Answer(missing=reason)
                asked = error.headers.get("Retry-After", "")
                wait = min(float(asked), LONGEST_PAUSE) if asked.isdigit() else wait
            except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:  # cut off, or no answer in it
                reason = f"{type(error).__name__}: {error}"
            if attempts <= self.retries:
                ended.wait(wait)
        return Answer(missing=f"no answer after {attempts} requests ({reason})", again=True)


def fields_of(max_tokens: int, request: Mapping[str, Any]) -> dict[str, Any]:
    """A body's fields besides model and messages: greedy and short, unless `request` says otherwise.

    Args:
        request: a value for a field of the body, null to leave it out; with `max_completion_tokens`, as newer models
            call it, `max_tokens` is left out.
    """
    limit = {} if "max_completion_tokens" in request else {"max_tokens": max_tokens}
    return {name: x for name, x in ({"temperature": 0} | limit | dict(request)).items() if x is not None}


def _answer(reply: Any) -> Answer:
    """The answer; an empty one where the model spent its tokens before it said anything."""
    choice = reply["choices"][0]
    content = choice["message"].get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content)
    if not content and choice.get("finish_reason") == "content_filter":
        return Answer(missing="content_filter")
    return Answer(content)


def _said(error: urllib.error.HTTPError) -> str:
    """What is wrong, in the endpoint's words, without the numbers that differ from question to question."""
    try:
        text = error.read(2000).decode(errors="replace")
    except (OSError, HTTPException):
        return error.reason
    try:
        told = json.loads(text)["error"]
        text = str(told.get("code") or told["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    return re.sub(r"\d+", "N", " ".join(text.split()))[:200]
