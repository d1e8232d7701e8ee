"""The mix methods, one a file, and the table of them."""

from __future__ import annotations

from steelyard.registry import Registry
from steelyard_server.policies.mix.ado import Ado
from steelyard_server.policies.mix.cluster_softmax import ClusterSoftmax
from steelyard_server.policies.mix.cluster_ucb import ClusterUcb
from steelyard_server.policies.mix.contract import GroupReport, Mix, State
from steelyard_server.policies.mix.domain_schedule import DomainSchedule
from steelyard_server.policies.mix.doremi import Doremi
from steelyard_server.policies.mix.group_balanced import GroupBalanced
from steelyard_server.policies.mix.group_dro import GroupDro
from steelyard_server.policies.mix.odm import Odm
from steelyard_server.policies.mix.rank_aggregate_quota import RankAggregateQuota
from steelyard_server.policies.mix.sheared_llama import ShearedLlama
from steelyard_server.policies.mix.skill_it import SkillIt
from steelyard_server.policies.mix.static import Static
from steelyard_server.policies.mix.temperature import Temperature

METHODS: Registry[Mix] = Registry(
    "mix",
    Mix,
    (
        Ado,
        ClusterSoftmax,
        ClusterUcb,
        DomainSchedule,
        Doremi,
        GroupBalanced,
        GroupDro,
        Odm,
        RankAggregateQuota,
        ShearedLlama,
        SkillIt,
        Static,
        Temperature,
    ),
)

__all__ = ["METHODS", "GroupReport", "Mix", "State"]
