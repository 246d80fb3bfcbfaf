"""What training processes import, all at once: a fork server that has imported this forks runs in milliseconds.

Nothing here may start a thread pool: a process that is forked after that can deadlock.
"""

from importlib import import_module

from upo.runtime.lightning_patches import frozen_imports

MODULES = (
    "upo.cli.main", "upo.evaluation.measure", "upo.rollout.sampling", "upo.models.export", "upo.comparison",
    "omegaconf", "PIL.PngImagePlugin",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""What runs, stages and comparisons import sooner or later, Lightning and transformers first among it."""

with frozen_imports():  # the collector would touch, and so copy, every page in every child
    for name in MODULES:
        import_module(name)
