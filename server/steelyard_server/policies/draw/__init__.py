"""The draw methods, one a file, and the table of them."""

from __future__ import annotations

from steelyard.registry import Registry
from steelyard_server.policies.draw.aflite import Aflite
from steelyard_server.policies.draw.candidate_pool import CandidatePool
from steelyard_server.policies.draw.color_filter import ColorFilter
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples
from steelyard_server.policies.draw.curriculum import Curriculum
from steelyard_server.policies.draw.data_diet import DataDiet
from steelyard_server.policies.draw.forgetting import Forgetting
from steelyard_server.policies.draw.grad_norm_mix import GradNormMix
from steelyard_server.policies.draw.gumbel_top_k import GumbelTopK
from steelyard_server.policies.draw.influence import Influence
from steelyard_server.policies.draw.infobatch import Infobatch
from steelyard_server.policies.draw.jtt import Jtt
from steelyard_server.policies.draw.loss_history import LossHistory
from steelyard_server.policies.draw.per import Per
from steelyard_server.policies.draw.rank_based import RankBased
from steelyard_server.policies.draw.scored import Scored
from steelyard_server.policies.draw.shuffle import Shuffle
from steelyard_server.policies.draw.utility_decay import UtilityDecay

METHODS: Registry[Draw] = Registry(
    "draw",
    Draw,
    (
        Aflite,
        CandidatePool,
        ColorFilter,
        Curriculum,
        DataDiet,
        Forgetting,
        GradNormMix,
        GumbelTopK,
        Influence,
        Infobatch,
        Jtt,
        LossHistory,
        Per,
        RankBased,
        Scored,
        Shuffle,
        UtilityDecay,
    ),
)

__all__ = ["METHODS", "Draw", "Drawer", "Drawn", "Examples"]
