"""Unified preference optimization of language models."""

from upo.runtime.moved import install

install()
