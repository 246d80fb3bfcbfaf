"""The base of all: collectives, optimizers, operations, seeds, run folders and files, what is patched in Lightning."""
