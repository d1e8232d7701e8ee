"""What a draw or mix method of one's own is made from. Weigh rules need the client alone: steelyard.weigh.Rule.

CONTRIBUTING.md has an example, and says how the server finds it.
"""

from steelyard.source import Source
from steelyard_server.core.exact import exp, log, power
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw import Draw, Drawer, Drawn, Examples
from steelyard_server.policies.draw.engines.local import ByColumn, MassDraw, ScoredDrawer
from steelyard_server.policies.draw.engines.ordered import OrderedDraw
from steelyard_server.policies.draw.engines.refreshed import RefreshedDraw
from steelyard_server.policies.draw.engines.subset import Kept, SubsetDraw
from steelyard_server.policies.draw.rows import Moment, Rows
from steelyard_server.policies.mix import GroupReport, Mix, State

__all__ = [
    "ByColumn",
    "Derived",
    "Draw",
    "Drawer",
    "Drawn",
    "Examples",
    "GroupReport",
    "Kept",
    "MassDraw",
    "Mix",
    "Moment",
    "OrderedDraw",
    "RefreshedDraw",
    "Rows",
    "ScoredDrawer",
    "Source",
    "State",
    "SubsetDraw",
    "exp",
    "log",
    "power",
]
