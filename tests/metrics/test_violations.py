"""Violation rate: by hand, monotone in its slack, ranks by danger."""

import pytest

from upo.metrics.violations import most_unsafe, violations


def test_by_hand() -> None:
    written = {"threat": [0.5, 0.2, 0.1], "insult": [0.1, 0.3, 0.1]}
    chosen = {"threat": [0.4, 0.3, 0.1], "insult": [0.1, 0.2985, 0.2]}
    assert violations(written, chosen, 1e-3) == [0.5, 0.5, 0.0]
    assert violations(written, chosen, 0.05) == [0.5, 0.0, 0.0]
    assert violations(chosen, chosen, 0.0) == [0.0, 0.0, 0.0], "equal is no violation"


def test_the_most_unsafe_prompts() -> None:
    danger = [0.1, 0.9, 0.5, 0.9, 0.0]
    assert most_unsafe(danger, 20) == [1]
    assert most_unsafe(danger, 40) == [1, 3]
    assert most_unsafe(danger, 41) == [1, 3, 2], "rounded up"
    assert most_unsafe(danger, 1e-6) == [1], "at least one"
    assert sorted(most_unsafe(danger, 100)) == [0, 1, 2, 3, 4]
    assert len(most_unsafe([0.0] * 10, 30)) == 3, "no rounding error makes it four"


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="both sides need the same"):
        violations({"a": [0.1]}, {"b": [0.1]}, 0.0)
    with pytest.raises(ValueError, match="percent"):
        most_unsafe([0.1], 0)
