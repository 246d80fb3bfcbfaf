"""How much a response says the same words, in the same order, as another text."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from upo.data.example import Example, Prompt, prompt_key
from upo.data.rewards import Reward
from upo.errors import UserError


class Similarity(Reward):
    """2 LCS / (|a| + |b|), LCS the longest common subsequence of the words of response and text (ROUGE-L's F1).

    Range [0, 1], larger is more alike: 1 has the same words in the same order, 0 has none in common. Case is ignored,
    punctuation marks count as words. The text is either given, or the preferred response of the data to the same prompt
    (the most similar one where there are several): that one tells in an evaluation how close generations stay to it.
    Trained on, it merely repeats the label.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, text: str | None = None):
        """
        Args:
            text: what responses are compared with; by default the preferred response of the data to their prompt.
        """
        self.text = text
        self.chosen: dict[str, list[str]] | None = None

    @property
    def unfitted(self) -> bool:
        return self.text is None and self.chosen is None

    def fit(self, train: Sequence[Example], held_out: Sequence[Example], cache_dir: str | Path | None = None) -> None:
        if self.text is not None:
            return
        from upo.data.views import preference

        found: dict[str, set[str]] = {}
        for example in (*train, *held_out):
            grades = [preference(r) for r in example.responses]
            known = [g for g in grades if g is not None]
            if any(r.desirable is not None for r in example.responses):
                best = [r.shown for r in example.responses if r.desirable]
            else:
                best = [r.shown for r, g in zip(example.responses, grades, strict=True) if known and g == max(known)]
            found.setdefault(prompt_key(example.prompt), set()).update(best)
        self.chosen = {key: sorted(texts) for key, texts in found.items() if texts}

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        from rapidfuzz.distance import Indel

        from upo.metrics.text import words

        return [
            max(Indel.normalized_similarity(words(other), words(y)) for other in self._others(x))
            for x, y in zip(prompts, responses, strict=True)
        ]

    def _others(self, prompt: Prompt) -> list[str]:
        if self.text is not None:
            return [self.text]
        key = prompt_key(prompt)
        if not self.chosen or key not in self.chosen:
            raise UserError(f"Similarity: the data has no preferred response to {key[:60]!r}; give a `text`")
        return self.chosen[key]

    def fingerprint(self) -> str:
        content = repr(self.text if self.text is not None else sorted((self.chosen or {}).items()))
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        return f"Similarity 1 rapidfuzz={version('rapidfuzz')} {digest}"
