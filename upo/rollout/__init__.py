"""Texts that a model writes: sampling with transformers or vLLM."""
