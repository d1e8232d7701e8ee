"""The data half of PA&DA: from a uniform draw at first to one in proportion to gradient norms at the end.

    p_i = tau_e g_i / sum_j g_j + (1 - tau_e) / N,   tau_e = min(e / total_epochs, 1),   e = 0, 1, 2, ...

g_i is the running pairwise average of the norms that were reported of i in the last epoch: the first value, then the
half of the old average and the new value each time; 0 where none was. An epoch is `refresh_steps` steps, by default as
many as draw N examples, with replacement.

Source: PA&DA (Lu et al., 2023), as in the authors' train_panda_201.py; 250 epochs are theirs. As there, the loss is not
corrected by 1 / (N p): the weigh rule 'importance' does that where it is wanted. The norm is to be reported by the
trainer; theirs is that of softmax minus one-hot. The half that draws paths of a network has no place here.

Traps: at tau = 1 what was not drawn in an epoch is not drawn any more, as in the authors' code; total_epochs above the
epochs that are trained, or a `floor`, keeps all within reach. Reports that come after an epoch's end count for the
next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core.sampling import Sampling
from steelyard_server.policies.columns import Derived, ascending
from steelyard_server.policies.draw.contract import Drawer, Examples, Float32s, Ids
from steelyard_server.policies.draw.engines.refreshed import RefreshedDraw, RefreshedDrawer
from steelyard_server.policies.draw.rows import Float64s, Moment, Rows

_NORM = "own:norm"
_PAIRWISE = Derived("ema", "norm", 0.5)


class GradNormMix(RefreshedDraw):
    """A mixture of the uniform law and gradient norms, from the one to the other."""

    source: ClassVar[Source] = Source(
        "PA&DA: Jointly Sampling Path and Data for Consistent NAS (Lu et al., 2023)", "train_panda_201.py"
    )
    never_reported: ClassVar[str] = (
        "A norm of 0, as all that the last epoch did not report: the uniform share alone."
    )

    method: Literal["grad_norm_mix"] = "grad_norm_mix"
    signal: str = Field(default="grad_norm", min_length=1, max_length=64)
    """The reported signal that is the norm of an example's gradient, 0 or more."""
    total_epochs: Annotated[int, Field(ge=1)] = 250
    """The epoch from which on the norms alone decide."""
    sampling: Sampling = Sampling.INDEPENDENT

    @property
    def derived(self) -> tuple[Derived, ...]:
        return ()

    @property
    def static(self) -> tuple[str, ...]:
        return ()

    @property
    def own(self) -> tuple[str, ...]:
        return (*super().own, _NORM)

    @property
    def listens(self) -> tuple[str, ...]:
        return (self.signal,)

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        return _GradNormDrawer(self, examples, seed, batch_size, state)

    def weights(self, rows: Rows, moment: Moment) -> Float64s:
        norms = np.where(rows.live, np.maximum(np.nan_to_num(rows[_NORM].astype(np.float64)), 0.0), 0.0)
        total = float(np.sum(norms))
        if not total > 0:
            return np.ones(rows.size)
        tau = min(moment.epoch / self.total_epochs, 1.0)
        return tau * norms / total + (1.0 - tau) / max(rows.size - len(rows.retired), 1)


class _GradNormDrawer(RefreshedDrawer):
    """Keeps the norms of the epoch, and forgets them when the next one begins."""

    def __init__(
        self,
        draw: GradNormMix,
        examples: Examples,
        seed: int,
        batch_size: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(draw, examples, seed, batch_size, state)
        self._signal = draw.signal

    def refresh(self, step: int) -> None:
        super().refresh(step)
        known = np.flatnonzero(~np.isnan(self._examples.columns[_NORM]))
        self._examples.put(_NORM, known, np.full(len(known), np.nan, np.float32))

    def folded(self, step: int, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        values = signals.get(self._signal)
        if values is None:
            return
        known = ~np.isnan(values)
        once = ascending(ids[known])
        norms = self._examples.columns[_NORM][once]
        _PAIRWISE.fold({_PAIRWISE.name: norms}, np.searchsorted(once, ids[known]), values[known])
        self._examples.put(_NORM, once, norms)

    @property
    def _score(self) -> str | None:
        return _NORM
