"""Temperature mixing: q_c ∝ min(n_c · scale, K)^(1/T).

Source: the mixing rates of the T5 code's utilities (`rate_num_examples`): K is the artificial limit on a group's size,
T = 1 is proportional, a large T nearly uniform. The mT5 form n^0.3 is T = 1 / 0.3.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core.exact import power
from steelyard_server.policies.mix.contract import Float64s, Int64s, Mix, State


class Temperature(Mix):
    """Masses between proportional and uniform, from the sizes of the groups alone."""

    source: ClassVar[Source] = Source(
        paper="Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer "
        "(Raffel et al., 2020)",
        where="temperature-scaled mixing; t5 utils",
    )
    never_reported: ClassVar[str] = "Drawn like every other example of their group: reports are not read."

    method: Literal["temperature"] = "temperature"
    temperature: Annotated[float, Field(ge=1e-2, le=1e9)] = 2.0
    """T: 1 is proportional to size, infinity uniform."""
    maximum: Annotated[float, Field(gt=0, le=1e30)] | None = None
    """K: a group counts as at most so many examples; None: no limit."""
    scale: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """What a group's size is multiplied with before the limit."""

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        counts: Float64s = sizes.astype(np.float64) * self.scale
        if self.maximum is not None:
            counts = np.minimum(counts, np.float64(self.maximum))
        # Relative to the greatest, so that a T below 1 does not overflow.
        return power(counts / max(float(counts.max(initial=0.0)), 1e-300), 1.0 / self.temperature)
