"""Kernels, each beside its eager twin."""
