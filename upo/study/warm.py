"""What training processes import, all at once: a fork server that has imported this forks runs in milliseconds.

Nothing here may start a thread pool: a process that is forked after that can deadlock.
"""

import gc

gc.disable()
import matplotlib.pyplot  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import upo.cli  # noqa: E402
import upo.measure  # noqa: E402
import upo.sampling  # noqa: E402, F401

gc.enable()
gc.freeze()  # the collector would touch, and so copy, every page in every child
