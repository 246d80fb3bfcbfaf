"""What comes back for a question: a text, or the reason why there is none."""

from attrs import frozen


@frozen
class Answer:
    """One answer of a chat model."""

    text: str = ""
    missing: str | None = None
    """Why there is none: the question was refused, or nothing came after all repetitions."""
    again: bool = False
    """Whether the same question may be answered another time."""
