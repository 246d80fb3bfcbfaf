"""One method, one file."""

from upo.methods.dpo import DPO
from upo.methods.kto import KTO
from upo.methods.sft import SFT
from upo.methods.upo import UPO, UPODPO

__all__ = ["DPO", "KTO", "SFT", "UPO", "UPODPO"]
