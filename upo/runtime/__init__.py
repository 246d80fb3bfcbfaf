"""The base of all: collectives, optimizers, counted operations, what is patched in Lightning."""
