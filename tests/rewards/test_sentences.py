"""Short sentences by hand."""

import pytest

from upo.errors import UserError
from upo.rewards import ShortSentences


def test_by_hand() -> None:
    reward = ShortSentences(easy=4, hard=14)
    long = "The dog saw the red ball in the park! It barked very loudly at him."
    texts = ["Tim ran. He fell.", long, "a " * 20, "", "..."]
    # 2 words a sentence; (9 + 6) / 2 = 7.5 words: (14 - 7.5) / 10; 20 words; no word
    assert reward([""] * 5, texts) == pytest.approx([1.0, 0.65, 0.0, 0.0, 0.0])


def test_bounds_in_the_wrong_order() -> None:
    with pytest.raises(UserError, match="easy=9"):
        ShortSentences(easy=9, hard=9)
