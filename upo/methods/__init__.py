"""One method, one file."""

import upo.reference_store  # noqa: F401  makes its short name known
from upo.methods.apo_anchored import APODown, APOZero
from upo.methods.dpo import DPO
from upo.methods.kto import KTO
from upo.methods.kto_zero import KTOZero
from upo.methods.sft import SFT
from upo.methods.step_dpo import StepDPO
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
    "APODown",
    "APOZero",
    "KTOZero",
    "StepDPO",
]
