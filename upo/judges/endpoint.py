"""Questions to an OpenAI-compatible endpoint (`/chat/completions`), several at a time."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from upo.errors import UserError

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP states after which the same request may succeed."""
LONGEST_PAUSE = 60.0


class Endpoint:
    """Asks `model` at `url`, greedily; answers come in the order of the questions."""

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
        pause: float = 1.0,
    ):
        """
        Args:
            key: environment variable with the key; read when asking, never stored.
            pause: seconds before the first repetition; each further one waits twice as long.
        """
        if not url.startswith(("http://", "https://")):
            raise UserError(f"the judge's endpoint `{url}` is no web address; write e.g. http://localhost:8000/v1")
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.model, self.max_tokens, self.parallel = model, max_tokens, parallel
        self.key, self.timeout, self.retries, self.pause = key, timeout, retries, pause

    def __call__(self, questions: Sequence[str]) -> list[str]:
        threads = ThreadPoolExecutor(self.parallel)
        try:
            return list(threads.map(self._ask, questions))
        finally:
            threads.shutdown(cancel_futures=True)  # after an error, what is not asked yet stays unasked

    def _ask(self, question: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        for attempt in range(self.retries + 1):
            wait = min(self.pause * 2**attempt, LONGEST_PAUSE)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return _text(json.load(reply))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code in (401, 403):
                    raise UserError(f"the judge at {self.url} refuses access ({reason}); set {self.key}") from None
                if error.code not in BUSY:
                    raise UserError(f"the judge at {self.url} refuses the request: {reason}") from None
                asked = error.headers.get("Retry-After", "")
                wait = min(float(asked), LONGEST_PAUSE) if asked.isdigit() else wait
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(wait)
        raise UserError(f"the judge at {self.url} gave no answer after {self.retries + 1} requests ({reason})")


def _text(reply: Any) -> str:
    """The answer; an empty one where the model spent its tokens before it said anything."""
    return reply["choices"][0]["message"]["content"] or ""
