"""Types for ranges of numbers that jsonargparse does not define; it allows one name per range only."""

from jsonargparse.typing import restricted_number_type

FlipRate = restricted_number_type("FlipRate", float, [(">=", 0), ("<", 0.5)])
"""Probability that a label is wrong, in [0, 0.5)."""
Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])
"""Share of a whole, in [0, 1)."""
Smoothing = restricted_number_type("Smoothing", float, [(">", 0), ("<", 0.5)])
"""Probability of the less likely label, in (0, 0.5)."""
