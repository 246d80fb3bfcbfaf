"""Where training stands among the rounds of a feed: which one is on, and with which optimizer step it began."""

from typing import Any

from attrs import evolve

from upo.data.rounds import Feed, Round
from upo.errors import UserError


class Feeding:
    """Asks a feed for the round that the coming step belongs to; its state makes a resumed run ask for the same."""

    def __init__(self, feed: Feed):
        self.feed = feed
        self.begun: list[int] = []
        """The optimizer step with which each round began."""
        self.round: Round | None = None
        """The one that is on; None where this process has not asked for it yet."""

    @property
    def number(self) -> int:
        """Of the round that is on, from 0."""
        return len(self.begun) - 1

    def advance(self, step: int, read: Round, method: Any, units_per_step: int) -> Round | None:
        """The round of optimizer step `step`, as the method prepares it; None where the feed has no more.

        Raises:
            UserError: a round without a unit to train on.
        """
        if self.begun:
            round = self.round or self._ask(self.number, read, method)  # resumed: it is made once more
            if round is not None and step < self.begun[-1] + -(-len(round.train) // units_per_step):
                return round
        if (round := self._ask(self.number + 1, read, method)) is not None:
            self.begun.append(step)
        return round

    def _ask(self, number: int, read: Round, method: Any) -> Round | None:
        round = self.feed.next(number, read, method)
        self.round = round and method.prepare(evolve(round, number=number))
        if self.round is not None and not len(self.round.train):
            raise UserError(f"round {number} of {type(self.feed).__name__} has nothing to train on; look at its units")
        return self.round

    def state_dict(self) -> dict[str, Any]:
        return {"begun": list(self.begun), "feed": self.feed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun = list(state["begun"])
        self.feed.load_state_dict(state["feed"])
