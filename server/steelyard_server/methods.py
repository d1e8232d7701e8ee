"""What a draw or mix method of one's own is made from. Weigh rules need the client alone: steelyard.weigh.Rule.

CONTRIBUTING.md has an example, and says how the server finds it.
"""

from steelyard.source import Source
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw import Draw, Drawer, Drawn, Examples
from steelyard_server.policies.draw.engines.refreshed import RefreshedDraw
from steelyard_server.policies.draw.rows import Moment, Rows
from steelyard_server.policies.mix import GroupReport, Mix, State

__all__ = [
    "Derived",
    "Draw",
    "Drawer",
    "Drawn",
    "Examples",
    "GroupReport",
    "Mix",
    "Moment",
    "RefreshedDraw",
    "Rows",
    "Source",
    "State",
]
