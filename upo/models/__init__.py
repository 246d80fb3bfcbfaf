"""Policies and references: reading, heads, adapters, checkpoints, stored log-probs."""
