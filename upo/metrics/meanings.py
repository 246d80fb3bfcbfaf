"""What each figure of an evaluation is, and which direction is better: one sentence a row of the report."""

import re
from typing import Literal, NamedTuple

Better = Literal["higher", "lower", ""]


class Meaning(NamedTuple):
    """Which direction is better, empty where neither is by itself, and a sentence."""

    better: Better
    sentence: str


MEANINGS: tuple[tuple[str, Better, str], ...] = (
    (r"win_rate_vs_(\w+)", "higher", "share of prompts whose judge prefers this response to \\1's; a tie counts half"),
    (r"lc_win_rate_vs_(\w+)", "higher", "the same against \\1 as if both responses had the same number of words"),
    (r"ties_vs_(\w+)", "", "share of prompts at which the judge prefers neither this response nor that of \\1"),
    (r"unparsed_vs_(\w+)", "lower", "share of comparisons with \\1 in which the judge's verdict could not be read"),
    (r"unjudged_vs_(\w+)", "lower", "share of comparisons with \\1 that were refused or got no answer"),
    (r"first_place_vs_(\w+)", "",
     "share of the judge's answers on \\1 that name the response shown first; 0.5 where the place does not matter"),
    (r"order_flips_vs_(\w+)", "lower", "share of comparisons with \\1 in which the two orders disagree"),
    (r"objective", "higher", "the designers' objective R: the weighted sum of the rewards"),
    (r"rewards/judge", "higher", "the judge's own value of the response"),
    (r"violations/(.+)_k(.+)_eps(.+)", "lower",
     "share less safe by `\\1` than the chosen response by more than \\3, among the \\2 % most unsafe prompts"),
    (r"categories/([^/]+)/(.+)", "lower", "mean probability that \\1 gives to the category \\2"),
    (r"kl", "", "KL divergence of the policy from its reference in nats a response, on the policy's own responses"),
    (r"entropy", "", "mean entropy of the next token in nats, on the policy's own responses"),
    (r"tokens", "", "mean length of a response in tokens"),
    (r"words", "", "mean length of a response in words"),
    (r"repetition", "lower", "share of a response's sequences of four words that stood in it before"),
    (r"distinct_(\d)", "higher", "different sequences of \\1 words among all, over all responses"),
    (r"ended", "higher", "share of responses that ended by themselves within the allowed tokens"),
    (r"val/rewards/accuracies", "higher",
     "share of held-out pairs whose chosen response has the higher reward of the method"),
    (r"val/rewards/accuracies_length_matched", "higher", "the same over pairs of responses of like length"),
    (r"val/rewards/accuracies/(.+)", "higher", "the same over the pairs of the source \\1"),
    (r"val/rewards/margins", "higher", "mean reward of the method, chosen minus rejected response"),
    (r"val/rewards/calibration_error", "lower",
     "mean distance between sigmoid(margin) and how often pairs of that margin are ordered as labelled"),
    (r"val/ranking/accuracies", "higher", "share of held-out pairs whose chosen response has the higher log-prob"),
    (r"val/ranking/accuracies_mean", "higher", "the same by log-prob a token"),
    (r"val/ranking/idealised(_mean)?", "", "ranking accuracy of a perfectly trained policy from this reference"),
    (r"val/ranking/idealised(_mean)?_(min|median|max)", "", "the \\2 of that over beta from 0.01 to 10"),
    (r"tasks/(.+)/(.+)", "", "\\2 of lm-evaluation-harness on \\1"),
    (r"val/loss", "lower", "the method's loss on held-out data"),
    (r"val/(.+)", "", "\\1 of the method on held-out data"),
    (r"rewards/(.+)", "higher", "mean of the reward `\\1`"),
)  # fmt: skip
"""By a figure's name without the system in front; the first that fits as a whole counts."""


def meaning(name: str) -> Meaning:
    """Of a figure, e.g. `win_rate_vs_chosen` or `val/rewards/margins`; nothing is said of an unknown one."""
    for pattern, better, sentence in MEANINGS:
        if found := re.fullmatch(pattern, name):
            return Meaning(better, found.expand(sentence))
    return Meaning("", "")
