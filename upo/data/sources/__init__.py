"""One small function a data set: `(rows, report, **options) -> examples`.

To add one: a file here with a function of the same name, an import and a name in `__all__` below.
"""

from upo.data.sources.argilla import argilla
from upo.data.sources.gsm8k_solutions import gsm8k_solutions
from upo.data.sources.hanna import hanna
from upo.data.sources.helpsteer2 import helpsteer2
from upo.data.sources.helpsteer3 import helpsteer3
from upo.data.sources.hh import hh
from upo.data.sources.llmbar import llmbar
from upo.data.sources.mlmb import mlmb
from upo.data.sources.nectar import nectar
from upo.data.sources.oasst import oasst
from upo.data.sources.odpo import odpo
from upo.data.sources.odpo_tldr import odpo_tldr
from upo.data.sources.pandalm import pandalm
from upo.data.sources.prmbench import prmbench
from upo.data.sources.prompts import prompts
from upo.data.sources.qa_feedback import qa_feedback
from upo.data.sources.rewardbench import rewardbench
from upo.data.sources.sft import sft
from upo.data.sources.sharegpt import sharegpt
from upo.data.sources.shp import shp
from upo.data.sources.topical_chat import topical_chat
from upo.data.sources.tot_game24 import tot_game24
from upo.data.sources.tot_game24_chain import tot_game24_chain
from upo.data.sources.trl import trl
from upo.data.sources.ultrafeedback import ultrafeedback
from upo.data.sources.world import world

__all__ = [
    "argilla",
    "gsm8k_solutions",
    "hanna",
    "helpsteer2",
    "helpsteer3",
    "hh",
    "llmbar",
    "mlmb",
    "nectar",
    "oasst",
    "odpo",
    "odpo_tldr",
    "pandalm",
    "prmbench",
    "prompts",
    "qa_feedback",
    "rewardbench",
    "sft",
    "sharegpt",
    "shp",
    "topical_chat",
    "tot_game24",
    "tot_game24_chain",
    "trl",
    "ultrafeedback",
    "world",
]
