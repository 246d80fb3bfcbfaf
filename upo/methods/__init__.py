"""One method, one file; `python -m upo.methods` lists them, `common/` holds what they share."""

import upo.models.stored_reference  # noqa: F401  so that its short name can be used in YAMLs
from upo.methods.a_lol import ALOL, ALOLKL, ALOLRefFree, ALOLSequence
from upo.methods.aot import AOTPaired, AOTUnpaired
from upo.methods.apo_anchored import APODown, APOZero
from upo.methods.asft import ASFT
from upo.methods.bco import BCO
from upo.methods.beta_dpo import BetaDPO
from upo.methods.cal_dpo import CalDPO
from upo.methods.cpo import CPO
from upo.methods.cpo_simpo import CPOSimPO
from upo.methods.csft import CSFT
from upo.methods.curry_dpo import CurryDPO
from upo.methods.discopop import DiscoPOP
from upo.methods.dove import DOVE
from upo.methods.dpo import DPO
from upo.methods.dpo_gamma import DPOGamma
from upo.methods.dpop import DPOP
from upo.methods.dro_v import DROV
from upo.methods.exo import EXO, EXOListwise
from upo.methods.f_dpo import FDPO
from upo.methods.flex_dpo import FlexDPO
from upo.methods.geometric import GDPO, GIPO, GROPO
from upo.methods.guided_dpo import GuidedDPO
from upo.methods.hybrid_dpo import HybridDPO
from upo.methods.ipo import IPO, IPOAveraged
from upo.methods.kto import KTO
from upo.methods.kto_pair import KTOPair
from upo.methods.kto_zero import KTOZero
from upo.methods.ln_dpo import LNDPO, LNDPOP
from upo.methods.modpo import MODPO
from upo.methods.mpo import MPO
from upo.methods.nca import NCA, InfoNCA, NCAListwise
from upo.methods.odpo import ODPO
from upo.methods.oppo import AOPPO, OPPO
from upo.methods.oreo import OREO, StepOREO, TrajectoryOREO
from upo.methods.orpo import ORPO
from upo.methods.r_dpo_length import LengthRegularizedDPO
from upo.methods.rationale import RDPO, RORPO
from upo.methods.rdpo_robust import RobustDPO
from upo.methods.reward_weighted_sft import RewardWeightedSFT
from upo.methods.rpo_regularized import RegularizedPO
from upo.methods.rso_hinge import RSOHinge
from upo.methods.sft import SFT
from upo.methods.simpo import SimPO
from upo.methods.slic_hf import SLiCHF
from upo.methods.soft_labels import SoftCDPO, SoftCIPO
from upo.methods.sparse_po import MaPO, SparsePO
from upo.methods.spo_degree import SPODegree
from upo.methods.sppo import SPPOHard, SPPOSoft
from upo.methods.srpo import SRPO
from upo.methods.step_apo import StepAPO
from upo.methods.step_dpo import StepDPO
from upo.methods.tdpo import TDPO1, TDPO2
from upo.methods.tpo_triple import TPO, TPOL
from upo.methods.upo import UPO, UPODPO, UPOIPO
from upo.methods.upo_controls import AuxiliaryOnly, UPOShuffled
from upo.methods.vpo_value import VPO
from upo.methods.wpo import WPO

__all__ = [
    "ALOL",
    "ALOLKL",
    "AOPPO",
    "ASFT",
    "BCO",
    "CPO",
    "CSFT",
    "DOVE",
    "DPO",
    "DPOP",
    "DROV",
    "EXO",
    "FDPO",
    "GDPO",
    "GIPO",
    "GROPO",
    "IPO",
    "KTO",
    "LNDPO",
    "LNDPOP",
    "MODPO",
    "MPO",
    "NCA",
    "ODPO",
    "OPPO",
    "OREO",
    "ORPO",
    "RDPO",
    "RORPO",
    "SFT",
    "SRPO",
    "TDPO1",
    "TDPO2",
    "TPO",
    "TPOL",
    "UPO",
    "UPODPO",
    "UPOIPO",
    "VPO",
    "WPO",
    "ALOLRefFree",
    "ALOLSequence",
    "AOTPaired",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "AuxiliaryOnly",
    "BetaDPO",
    "CPOSimPO",
    "CalDPO",
    "CurryDPO",
    "DPOGamma",
    "DiscoPOP",
    "EXOListwise",
    "FlexDPO",
    "GuidedDPO",
    "HybridDPO",
    "IPOAveraged",
    "InfoNCA",
    "KTOPair",
    "KTOZero",
    "LengthRegularizedDPO",
    "MaPO",
    "NCAListwise",
    "RSOHinge",
    "RegularizedPO",
    "RewardWeightedSFT",
    "RobustDPO",
    "SLiCHF",
    "SPODegree",
    "SPPOHard",
    "SPPOSoft",
    "SimPO",
    "SoftCDPO",
    "SoftCIPO",
    "SparsePO",
    "StepAPO",
    "StepDPO",
    "StepOREO",
    "TrajectoryOREO",
    "UPOShuffled",
]
