"""What methods that look at all rows are given."""

from __future__ import annotations

import numpy as np
from scipy import stats

from steelyard_server.policies.draw.rows import Moment, Rows


def test_lots_are_the_same_at_each_call_and_others_at_another_step_or_seed() -> None:
    lots = Moment(step=3, epoch=0, seed=1).uniform(50)
    assert np.array_equal(lots, Moment(step=3, epoch=9, seed=1).uniform(50))
    assert not np.isin(lots, Moment(step=4, epoch=0, seed=1).uniform(50)).any()
    assert not np.isin(lots, Moment(step=3, epoch=0, seed=2).uniform(50)).any()


def test_lots_follow_their_laws() -> None:
    """A right generator fails either by chance once in 10^5 seeds."""
    moment = Moment(step=0, epoch=0, seed=7)
    uniform, gumbel = moment.uniform(20_000), moment.gumbel(20_000)
    assert 0 < uniform.min() < uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-5
    assert stats.kstest(gumbel, "gumbel_r").pvalue > 1e-5


def test_the_live_rows_are_those_not_retired() -> None:
    rows = Rows(4, np.array([1, 3]), {"loss": np.zeros(4, np.float32)})
    assert rows.live.tolist() == [True, False, True, False]
    assert rows["loss"].tolist() == [0.0] * 4
