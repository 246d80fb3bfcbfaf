"""One method, one file."""

import upo.reference_store  # noqa: F401  makes its short name known
from upo.methods.apo_anchored import APODown, APOZero
from upo.methods.asft import ASFT
from upo.methods.cal_dpo import CalDPO
from upo.methods.cpo import CPO
from upo.methods.cpo_simpo import CPOSimPO
from upo.methods.dpo import DPO
from upo.methods.dpop import DPOP
from upo.methods.ipo import IPO, IPOAveraged
from upo.methods.kto import KTO
from upo.methods.kto_zero import KTOZero
from upo.methods.orpo import ORPO
from upo.methods.rdpo_robust import RobustDPO
from upo.methods.rpo_regularized import RegularizedPO
from upo.methods.rso_hinge import RSOHinge
from upo.methods.sft import SFT
from upo.methods.simpo import SimPO
from upo.methods.slic_hf import SLiCHF
from upo.methods.step_dpo import StepDPO
from upo.methods.tpo_triple import TPO, TPOL
from upo.methods.upo import UPO, UPODPO

__all__ = [
    "ASFT",
    "CPO",
    "DPO",
    "DPOP",
    "IPO",
    "KTO",
    "ORPO",
    "SFT",
    "TPO",
    "TPOL",
    "UPO",
    "UPODPO",
    "APODown",
    "APOZero",
    "CPOSimPO",
    "CalDPO",
    "IPOAveraged",
    "KTOZero",
    "RSOHinge",
    "RegularizedPO",
    "RobustDPO",
    "SLiCHF",
    "SimPO",
    "StepDPO",
]
