"""The weigh rules by their names."""

from __future__ import annotations

from typing import Any

from steelyard import plugins
from steelyard.registry import Registry
from steelyard.weigh import checks
from steelyard.weigh.extremes import Extremes
from steelyard.weigh.focal import Focal
from steelyard.weigh.importance import Importance
from steelyard.weigh.importance_resample import ImportanceResample
from steelyard.weigh.infobatch_rescale import InfobatchRescale
from steelyard.weigh.kl_dro import KlDro
from steelyard.weigh.linear_curriculum import LinearCurriculum
from steelyard.weigh.linupper import LinUpper
from steelyard.weigh.loss_rank_slice import LossRankSlice
from steelyard.weigh.mask_top import MaskTop
from steelyard.weigh.quadratic import Quadratic
from steelyard.weigh.reducr import Reducr
from steelyard.weigh.rho_loss import RhoLoss
from steelyard.weigh.rule import Rule
from steelyard.weigh.selective_backprop import SelectiveBackprop
from steelyard.weigh.self_paced import SelfPaced
from steelyard.weigh.top_k import TopK
from steelyard.weigh.uniform import Uniform
from steelyard.weigh.upper import Upper

_RULES: tuple[type[Rule], ...] = (
    Uniform,
    LinUpper,
    Quadratic,
    Extremes,
    Upper,
    KlDro,
    LossRankSlice,
    Importance,
    ImportanceResample,
    InfobatchRescale,
    Focal,
    SelfPaced,
    SelectiveBackprop,
    TopK,
    RhoLoss,
    Reducr,
    LinearCurriculum,
    MaskTop,
)

METHODS: Registry[Rule] = Registry("weigh", Rule, _RULES)
"""Every rule by its name: those of this package, and those of a user that were asked for."""


def names() -> tuple[str, ...]:
    """The names of all rules that find knows."""
    return tuple(METHODS)


def find(name: Any) -> type[Rule]:
    """The rule of that name, from the entry points of users (steelyard.plugins) where no other has it.

    ValueError: none has it, and the message lists the known ones and the nearest; or the entry point of that name gives
    no rule, and the message says why.
    """
    if isinstance(name, str) and name not in METHODS:
        for entry in plugins.entry_points(name):
            plugins.register(entry, METHODS)
    return METHODS[checks.choice("weigh.method", name, names())]
