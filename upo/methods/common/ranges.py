"""Ranges that jsonargparse has no name for: each is named once, since it refuses a second name for a range."""

from jsonargparse.typing import restricted_number_type

FlipRate = restricted_number_type("FlipRate", float, [(">=", 0), ("<", 0.5)])
"""Probability that a label is wrong, in [0, 0.5)."""
Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])
"""Part of a whole that is never all of it, in [0, 1)."""
Smoothing = restricted_number_type("Smoothing", float, [(">", 0), ("<", 0.5)])
"""Probability of the less likely side, in (0, 0.5)."""
