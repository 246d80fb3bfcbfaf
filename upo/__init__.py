"""Unified preference optimization of language models with PyTorch Lightning."""
