"""A chat model as judge: asked twice, with the responses in both orders."""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from upo.data.example import Prompt, as_text
from upo.errors import UserError
from upo.judges.base import Judge, Verdict

INSTRUCTION = Path(__file__).with_name("instruction.txt")
FIELDS = ("prompt", "first", "second")
VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}
LINE = re.compile(r"\W*(A|B|[Tt]ie|TIE)\W*")
"""A verdict, with brackets, stars or a full stop around it at most."""


class ChatJudge(Judge):
    """A chat model behind an OpenAI-compatible endpoint, or a local Hugging Face one; greedy.

    Each pair is asked in both orders, because such judges favour a place: the outcome is the mean of the two answers,
    so a judge that names the same place twice gives a tie. Two equal responses are a tie unasked. An answer counts
    where its last line is A, B or tie and nothing else; a pair with any other answer has no outcome, and evaluations
    report how many there are.
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
        """
        self.model, self.endpoint, self.instruction = model, endpoint, instruction
        self.max_tokens, self.parallel = max_tokens, parallel
        self.key, self.timeout, self.retries = key, timeout, retries
        self._question = read_instruction(instruction or INSTRUCTION)
        self._ask: Callable[[Sequence[str]], list[str]] | None = None

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        differing = [i for i in range(len(prompts)) if first[i] != second[i]]
        questions = []
        for i in differing:
            prompt = as_text(prompts[i])
            questions += [fill(self._question, prompt, a, b) for a, b in ((first[i], second[i]), (second[i], first[i]))]
        answers = [read_answer(text) for text in self._asker()(questions)] if questions else []
        verdicts = [Verdict(0.5)] * len(prompts)
        for i, there, back in zip(differing, answers[0::2], answers[1::2], strict=True):
            verdicts[i] = combined(there, back)
        return verdicts

    def fingerprint(self) -> str:
        text = hashlib.sha256(self._question.encode()).hexdigest()[:16]
        where = f" at {self.endpoint}" if self.endpoint else ""
        return f"ChatJudge 1 {self.model}{where} max_tokens={self.max_tokens} instruction={text}"

    def _asker(self) -> Callable[[Sequence[str]], list[str]]:
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
    return Verdict((there + 1 - back) / 2, flipped=there != 1 - back)
