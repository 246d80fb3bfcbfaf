"""Torchmetrics with sums and counts as states: exact over any batch size and any number of ranks."""
