"""Reading level of a response (Badrinath et al. 2025, arXiv 2405.17956: the reward R1)."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import ClassVar, Literal

from upo.data.example import Prompt
from upo.data.rewards import Reward

WORD = re.compile(r"[^\W\d_]")
"""A text has a word when it has a letter of any script."""

Formula = Literal[
    "text_standard",
    "flesch_kincaid_grade",
    "smog_index",
    "coleman_liau_index",
    "automated_readability_index",
    "linsear_write_formula",
    "gunning_fog",
]
"""Functions of textstat that give a school grade; the first is the consensus of the others and two more."""


class Grade(Reward):
    """U.S. school grade of the response, by default the consensus `textstat.text_standard(y, float_output=True)`.

    The consensus is the most frequent of the rounded grades of eight readability formulas (Flesch-Kincaid, SMOG,
    Coleman-Liau, ...), for English. Unit: school years, 0 and up (whole numbers for the consensus); LOWER is easier to
    read. A text without a word has grade 0. Use it for reports; `Readability` is the same as a reward whose larger
    values are better.
    """

    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    higher_is_better: ClassVar[bool | None] = False

    def __init__(self, formula: Formula = "text_standard"):
        """
        Args:
            formula: one readability formula instead of the consensus, by its name in textstat. SMOG's is meant for
                texts of 30 sentences, Linsear Write's for 100 words.
        """
        self.formula = formula

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        import textstat

        consensus = {"float_output": True} if self.formula == "text_standard" else {}
        function = getattr(textstat, self.formula)
        # A fragment can have a negative grade by some formulas.
        return [max(float(function(y, **consensus)), 0.0) if WORD.search(y) else 0.0 for y in responses]

    def fingerprint(self) -> str:
        return f"Grade 1 {self.formula} textstat={version('textstat')}"


class Readability(Reward):
    """The paper's R1(y) = min(max((9 - g(y)) / 5, 0), 1), g(y) the `Grade` of the response.

    Range [0, 1], larger is easier to read: 1 at grade 4 and below, 0 from grade 9 on. A text without a word
    earns 0: textstat would give it grade 0 and so the full reward, and empty responses would be the best
    ones.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, formula: Formula = "text_standard"):
        """
        Args:
            formula: what g is; by default the consensus (paper).
        """
        self.grade = Grade(formula)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        grades = self.grade(prompts, responses)
        return [
            min(max((9 - g) / 5, 0.0), 1.0) if WORD.search(y) else 0.0 for g, y in zip(grades, responses, strict=True)
        ]

    def fingerprint(self) -> str:
        return f"Readability 1 {self.grade.fingerprint()}"
