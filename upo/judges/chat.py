"""A chat model as judge: asked twice, with the responses in both orders."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from upo.data.example import Prompt, as_text
from upo.errors import UserError
from upo.judges.answer import Answer
from upo.judges.base import Judge, Verdict

INSTRUCTION = Path(__file__).with_name("instruction.txt")
FIELDS = ("prompt", "first", "second")
VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}
LINE = re.compile(r"\W*(A|B|[Tt]ie|TIE)\W*")
"""A verdict, with brackets, stars or a full stop around it at most."""
CHARACTERS = 4
"""Of a token, about: for estimates of what questions take."""
Ask = Callable[[Sequence[str]], Iterator[tuple[int, Answer]]]
"""Questions to answers, as they come, each with its question's place."""


class ChatJudge(Judge):
    """A chat model behind an OpenAI-compatible endpoint, or a local Hugging Face one; greedy.

    Each pair is asked in both orders, because such judges favour a place: the outcome is the mean of the two answers,
    so a judge that names the same place twice gives a tie. Two equal responses are a tie unasked. An answer counts
    where its last line is A, B or tie and nothing else; a pair with any other answer has no outcome, nor has one that
    the endpoint refuses or does not answer, and evaluations report how many there are. What an endpoint has judged is
    kept by content (prompt, responses, model, instruction, options) and asked once.
    """

    def __init__(
        self,
        model: str,
        endpoint: str | None = None,
        instruction: Path | None = None,
        max_tokens: PositiveInt = 256,
        parallel: PositiveInt = 8,
        key: str = "OPENAI_API_KEY",
        timeout: PositiveFloat = 120.0,
        retries: NonNegativeInt = 5,
        request: dict[str, Any] | None = None,
        max_requests: PositiveInt | None = None,
        cache: str | None = "~/.cache/upo/verdicts",
    ):
        """
        Args:
            model: name at the endpoint; without one, a hub name or local folder of a chat model.
            endpoint: where `/chat/completions` is found, e.g. https://api.openai.com/v1 or http://localhost:8000/v1.
            instruction: text file that is the judge's question, with `{prompt}`, `{first}` and `{second}` in it; by
                default the one in this package, `upo/judges/instruction.txt`.
            max_tokens: limit of an answer; a judge that thinks aloud needs more.
            parallel: questions at a time: open requests, or a local model's batch.
            key: environment variable that holds the endpoint's key; not needed where the endpoint asks for none.
            timeout: seconds that one request may take.
            retries: how often a busy or unreachable endpoint is asked again, after 1, 2, 4, ... seconds.
            request: fields of each request to an endpoint beside or in place of ours (`temperature: 0`, `max_tokens`);
                null leaves one out. Newer models want {max_completion_tokens: 2000, temperature: null}.
            max_requests: an evaluation that would send more requests than this is refused before the first one.
            cache: folder that keeps an endpoint's verdicts, by content; null keeps them until an evaluation is
                finished, as those of a local model.
        """
        if endpoint is None and request:
            raise UserError("the judge's `request` is for an endpoint; a model on this machine takes max_tokens alone")
        self.model, self.endpoint, self.instruction = model, endpoint, instruction
        self.max_tokens, self.parallel = max_tokens, parallel
        self.key, self.timeout, self.retries = key, timeout, retries
        self.request, self.max_requests, self.cache = request or {}, max_requests, cache
        self._question = read_instruction(instruction or INSTRUCTION)
        self._ask: Ask | None = None

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        found = dict(self.each(prompts, first, second))
        return [found[i] for i in range(len(prompts))]

    def each(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> Iterator[tuple[int, Verdict]]:
        differing = [i for i in range(len(prompts)) if first[i] != second[i]]
        yield from ((i, Verdict(0.5)) for i in range(len(prompts)) if first[i] == second[i])
        if not differing:
            return
        questions, answers = self._questions(prompts, first, second), {}
        for place, answer in self._asker()(questions):  # of pair i the questions 2i and, in the other order, 2i + 1
            answers[place] = answer
            pair = place // 2
            if 2 * pair in answers and 2 * pair + 1 in answers:
                yield differing[pair], of_answers(answers.pop(2 * pair), answers.pop(2 * pair + 1))

    def notice(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> str | None:
        questions = self._questions(prompts, first, second)
        if self.max_requests is not None and len(questions) > self.max_requests:
            raise UserError(
                f"the judge {self.model} would be asked {len(questions)} times, more often than max_requests "
                f"{self.max_requests}: raise it, or evaluate fewer prompts"
            )
        if not questions or self.endpoint is None:
            return None
        tokens = sum(map(len, questions)) // CHARACTERS
        limit = self.request.get("max_completion_tokens") or self.request.get("max_tokens") or self.max_tokens
        return (
            f"the judge {self.model} at {self.endpoint}: {len(questions)} requests, about {tokens} tokens in, "
            f"at most {len(questions) * limit} out"
        )

    @property
    def kept_in(self) -> Path | None:
        if self.endpoint is None or self.cache is None:  # the weights in a local folder may change
            return None
        name = hashlib.sha256(self.fingerprint().encode()).hexdigest()[:16]
        return Path(self.cache).expanduser() / f"{name}.jsonl"

    def fingerprint(self) -> str:
        text = hashlib.sha256(self._question.encode()).hexdigest()[:16]
        where = f" at {self.endpoint}" if self.endpoint else ""
        request = f" request={json.dumps(self.request, sort_keys=True)}" if self.request else ""
        return f"ChatJudge 1 {self.model}{where} max_tokens={self.max_tokens} instruction={text}{request}"

    def _questions(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[str]:
        """Two for each pair of different responses: as it is, and in the other order."""
        questions = []
        for prompt, one, other in zip(prompts, first, second, strict=True):
            if one != other:
                text = as_text(prompt)
                questions += [fill(self._question, text, a, b) for a, b in ((one, other), (other, one))]
        return questions

    def _asker(self) -> Ask:
        if self._ask is None:
            if self.endpoint is not None:
                from upo.judges.endpoint import Endpoint

                self._ask = Endpoint(
                    self.endpoint,
                    self.model,
                    max_tokens=self.max_tokens,
                    parallel=self.parallel,
                    key=self.key,
                    timeout=self.timeout,
                    retries=self.retries,
                    request=self.request,
                )
            else:
                from upo.judges.local import LocalChat

                self._ask = LocalChat(self.model, max_tokens=self.max_tokens, batch_size=self.parallel)
        return self._ask


def read_instruction(file: Path) -> str:
    """The judge's question.

    Raises:
        UserError: no such file, or one without a place for prompt and responses.
    """
    try:
        text = Path(file).read_text()
    except OSError as error:
        raise UserError(f"the judge's instruction {file} cannot be read: {error.strerror}") from None
    if missing := [f"{{{name}}}" for name in FIELDS if f"{{{name}}}" not in text]:
        raise UserError(f"the judge's instruction {file} lacks {', '.join(missing)}: write where they go")
    return text


def fill(question: str, prompt: str, first: str, second: str) -> str:
    """The question about one pair; braces in the texts mean nothing."""
    texts: dict[str, str] = dict(zip(FIELDS, (prompt, first, second), strict=True))
    return re.sub(r"\{(prompt|first|second)\}", lambda found: texts[found[1]], question)


def read_answer(text: str) -> float | None:
    """1 where the answer is A (the response that was shown first), 0 for B, 0.5 for a tie, None for all else."""
    lines = text.strip().splitlines()
    found = LINE.fullmatch(lines[-1].strip()) if lines else None
    return VERDICTS[found[1].upper()] if found else None


def combined(there: float | None, back: float | None) -> Verdict:
    """One verdict out of the answers in both orders; `back` was asked with the responses exchanged."""
    if there is None or back is None:
        return Verdict(None)
    return Verdict((there + 1 - back) / 2, flipped=there != 1 - back, first_place=(there + back) / 2)


def of_answers(there: Answer, back: Answer) -> Verdict:
    """The same out of what came back; without both answers there is no outcome, for a reason."""
    missing = [answer for answer in (there, back) if answer.missing is not None]
    if missing:
        lasting = min(missing, key=lambda answer: answer.again)
        return Verdict(None, unjudged=lasting.missing, again=lasting.again)
    return combined(read_answer(there.text), read_answer(back.text))
