"""Defaults are the papers', or the authors' code's where a paper gives none; each method's docstring says which."""

import inspect
from typing import Any

import pytest

import upo.methods
from upo.functional.divergences import JensenShannon
from upo.methods.common.base import Method

PAPERS: dict[str, dict[str, Any]] = {
    "ALOL": {"clip": 0.9},
    "ALOLKL": {"beta": 0.1},
    "AOTPaired": {"beta": 0.01, "label_smoothing": 0.0},
    "AOTUnpaired": {"beta": 0.01, "label_smoothing": 0.0},
    "APODown": {"beta": 0.1},
    "APOZero": {"beta": 0.1},
    "ASFT": {"lam": 0.1, "beta": 1.0},
    "BCO": {"beta": 0.01, "match_prompts": False},
    "BetaDPO": {"beta": 0.1, "a": 0.6, "rho": 0.2, "momentum": 0.9},
    "CPO": {"beta": 0.1, "alpha": 1.0, "nll_per_token": True},
    "CPOSimPO": {"beta": 10.0, "gamma": 5.4, "alpha": 0.05, "nll_per_token": True},
    "CalDPO": {"beta": 0.002, "calibration_weight": 1.0},
    "CurryDPO": {"beta": 0.1},
    "DOVE": {"beta": 0.1},
    "DPO": {"beta": 0.1, "label_smoothing": 0.0},
    "DPOGamma": {"beta": 0.1, "gamma": 0.5},
    "DPOP": {"beta": 0.3, "lam": 50.0},
    "DROV": {"tau": 1.0},
    "DiscoPOP": {"beta": 0.05, "tau": 0.05},
    "EXO": {"beta": 0.5, "eps": 1e-3},
    "EXOListwise": {"beta": 0.1, "temperature": 0.1},
    "FDPO": {"beta": 0.1, "divergence": JensenShannon},
    "FlexDPO": {"beta_plus": 0.1, "beta_minus": 0.08, "sft_weight": 0.0},
    "GDPO": {"beta": 0.1},
    "GIPO": {"tau": 0.1},
    "GROPO": {"beta": 0.1, "alpha": 14.0},
    "GuidedDPO": {"beta": 0.1, "gold_weight": 0.1},
    "HybridDPO": {"beta": 0.1},
    "IPO": {"tau": 0.1},
    "IPOAveraged": {"tau": 0.1},
    "InfoNCA": {"beta": 0.01, "temperature": 1e-3},
    "KTO": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "KTOPair": {"beta": 0.1},
    "KTOZero": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "LNDPO": {"beta": 5.0},
    "LNDPOP": {"beta": 5.0, "lam": 5.0},
    "LengthRegularizedDPO": {"beta": 0.1, "alpha": 0.01},
    "MODPO": {"beta": 0.1},
    "MPO": {"weights": None, "nll_weight": 0.0},
    "MaPO": {"beta": 0.1},
    "NCA": {"beta": 0.01},
    "NCAListwise": {"beta": 0.01, "temperature": 1e-3},
    "ODPO": {"beta": 0.1, "alpha": 1.0},
    "OREO": {"beta": 0.03, "kappa": 0.01, "wrong_reward": 0.0},
    "ORPO": {"lam": 0.1},
    "RDPO": {"beta": 0.1, "gamma": 1e-3, "log_sigmoid": False},
    "RORPO": {"lam": 0.1, "gamma": 1e-3, "log_sigmoid": False},
    "RSOHinge": {"gamma": 0.05},
    "RegularizedPO": {"beta": 0.01, "eta": 0.005, "nll_per_token": False},
    "RobustDPO": {"beta": 0.1, "flip_rate": 0.1},
    "SLiCHF": {"delta": 1.0, "lam": 0.1, "nll_per_token": False},
    "SPODegree": {"beta": 0.1, "gamma": 0.1},
    "SPPOHard": {"beta": 1e-3},
    "SPPOSoft": {"beta": 1e-3},
    "SRPO": {"beta": 0.1, "alpha": 0.5},
    "SimPO": {"beta": 2.0, "gamma": 0.5},
    "SoftCDPO": {"beta": 0.1},
    "SoftCIPO": {"tau": 0.1},
    "SparsePO": {"beta": 0.1, "common_mask": True},
    "StepAPO": {"beta": 0.3, "alpha": 1.0},
    "StepDPO": {"beta": 0.4},
    "StepOREO": {"beta": 0.03, "kappa": 0.01, "wrong_reward": 0.0},
    "TDPO1": {"beta": 0.1},
    "TDPO2": {"beta": 0.1, "alpha": 0.5},
    "TPO": {"beta": 0.2, "alpha": 0.9},
    "TPOL": {"beta": 0.01, "alpha": 1.0, "gamma": 0.5},
    "TrajectoryOREO": {"beta": 0.03, "kappa": 0.01, "wrong_reward": 0.0},
    "VPO": {"beta": 0.1, "alpha": 0.01},
    "WPO": {"beta": 0.01},
}


def defaults(kind: type[Method]) -> dict[str, Any]:
    """Of all arguments, those of the class before those of its parents."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and issubclass(base, Method):
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                found.setdefault(name, parameter.default)
    return found


@pytest.mark.parametrize("name", PAPERS)
def test_defaults_are_the_papers(name):
    known = defaults(getattr(upo.methods, name))
    for argument, value in PAPERS[name].items():
        default = known[argument]
        assert isinstance(default, value) if isinstance(value, type) else default == value, argument


OURS = {"SFT", "CSFT", "RewardWeightedSFT", "ALOLRefFree", "ALOLSequence", "OPPO", "AOPPO"}
"""Without numbers of their own here, or pinned in their own tests, as UPO's are."""


def test_no_offline_method_is_left_out():
    upos = {"AuxiliaryOnly", "UPO", "UPODPO", "UPOIPO", "UPOShuffled"}
    assert set(upo.methods.__all__) - set(PAPERS) == OURS | upos
