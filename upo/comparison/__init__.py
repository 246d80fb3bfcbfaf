"""Runs side by side: reading and pairing them, fronts, equal KL; tables and pictures of the result."""

from upo.comparison.runs import Group, Run, difference, figures, grouped, ordered, read_run, unlike

__all__ = ["Group", "Run", "difference", "figures", "grouped", "ordered", "read_run", "unlike"]
