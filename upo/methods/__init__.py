"""One method, one file."""

from upo.methods.dpo import DPO
from upo.methods.kto import KTO
from upo.methods.sft import SFT
from upo.methods.tpo_triple import TPO, TPOL
from upo.methods.upo import UPO, UPODPO

__all__ = [
    "DPO",
    "KTO",
    "SFT",
    "TPO",
    "TPOL",
    "UPO",
    "UPODPO",
]
