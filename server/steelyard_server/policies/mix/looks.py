"""What was last told of the draw of each group, of a few anew each time: draws do not wait for a look at hundreds."""

from __future__ import annotations

from collections.abc import Sequence

from steelyard_server.policies.draw.contract import Drawer, LawSummary

AT_ONCE = 8
"""Groups that are looked at when it is asked, which takes less than a millisecond."""


class Looks:
    def __init__(self) -> None:
        self._told: dict[Drawer, LawSummary] = {}
        """That of the longest ago first."""

    def at(self, drawers: Sequence[Drawer], most: int) -> list[LawSummary] | None:
        """The newest summary of each, which where there are more than AT_ONCE is of one of the last times it was
        asked; None while one was never looked at. `most` as of a drawer, for all together."""
        now = set(drawers)
        told = {drawer: summary for drawer, summary in self._told.items() if drawer in now}
        unknown = [drawer for drawer in drawers if drawer not in told]
        for drawer in [*unknown, *told][:AT_ONCE]:
            told.pop(drawer, None)
            told[drawer] = drawer.summary(max(1, most // len(drawers)))
        self._told = told
        return [told[drawer] for drawer in drawers] if len(told) == len(now) else None
