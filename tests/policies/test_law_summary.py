"""What is told of a law without looking at all of it agrees with the law."""

import numpy as np
import pytest

from steelyard_server.core.tree import GREAT, UNSEEN, Law, MassTree
from steelyard_server.policies.draw.contract import Examples
from steelyard_server.policies.draw.rows import unknown_share
from steelyard_server.policies.mix.looks import AT_ONCE
from steelyard_server.policies.policy import parse_policy

SIZE, BATCH = 3000, 16
ALL = 1 << 16
NOTHING = np.empty(0, np.int64)


def drawer_of(policy, *, unknown=0.0, retired=NOTHING, groups=7):
    """A drawer whose columns have numbers, a share of them not known; prepared for its first draw."""
    random = np.random.default_rng(7)
    examples = Examples(SIZE, retired, {})
    columns = [*(name for one in policy.derived for name in one.columns), *policy.static, *policy.own]
    for name in columns:
        values = random.lognormal(0.0, 1.5, SIZE).astype(np.float32)
        values[random.random(SIZE) < unknown] = np.nan
        examples.columns[name] = values if name not in policy.own else np.full(SIZE, np.nan, np.float32)
    if policy.mix is not None:
        examples.columns[policy.mix.group] = (np.arange(SIZE) % groups).astype(np.float32)
    drawer = policy.drawer(examples, seed=3, batch_size=BATCH, state=None)
    drawer.prepare(0)
    return drawer


def policy_of(draw, mix=None):
    return parse_policy(draw, {}, mix)


SCORED = {"method": "scored", "score": "last_loss", "sampling": "independent"}
DRAWS = {
    "shuffle": {"method": "shuffle"},
    "scored": SCORED,
    "floor": {**SCORED, "floor": 0.3},
    "rank": {**SCORED, "transform": "rank"},
    "gumbel": {**SCORED, "transform": "gumbel"},
    "candidate_pool": {"method": "candidate_pool", "sampling": "independent"},
    "infobatch": {"method": "infobatch"},
}


def law_of(drawer):
    """The probability of each example, estimated from nothing: by asking for very many and reading what they had."""
    probability = np.full(SIZE, np.nan)
    for step in range(60):
        drawn = drawer.draw(step, 2000)
        one = drawn.uniform_probability if drawn.probability is None else drawn.probability
        probability[drawn.ids] = one
    return probability[~np.isnan(probability)]


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("retired", [NOTHING, np.arange(0, SIZE, 9)], ids=["all", "some retired"])
def test_of_all_examples_it_is_what_the_drawer_says(name, retired):
    drawer = drawer_of(policy_of(DRAWS[name]), unknown=0.3, retired=retired)
    summary = drawer.summary(ALL)
    if name != "candidate_pool":
        assert summary.effective_sample_ratio == pytest.approx(drawer.effective_sample_ratio())
    if drawer.never_reported is None:
        assert summary.never_reported_share is None
    else:
        assert summary.never_reported_share == pytest.approx(drawer.never_reported / (SIZE - len(retired)))


@pytest.mark.parametrize("name", ["shuffle", "scored", "floor", "rank", "gumbel"])
def test_the_largest_share_is_the_greatest_probability_that_an_example_is_drawn_with(name):
    drawer = drawer_of(policy_of(DRAWS[name]), unknown=0.3)
    assert drawer.summary(ALL).largest_share == pytest.approx(law_of(drawer).max())


@pytest.mark.parametrize("name", DRAWS)
def test_a_part_of_the_examples_tells_about_as_much_as_all(name):
    """1500 of 3000 are looked at, some 1000 of which are known: the share's standard deviation is below 0.015."""
    drawer = drawer_of(policy_of(DRAWS[name]), unknown=0.3)
    whole, part = drawer.summary(ALL), drawer.summary(1500)
    if not np.isnan(part.effective_sample_ratio):
        # The heaviest may be among those that are not looked at.
        assert part.effective_sample_ratio == pytest.approx(whole.effective_sample_ratio, rel=0.1)
        assert part.largest_share <= whole.largest_share * 1.1
    if whole.never_reported_share is not None:
        assert part.never_reported_share == pytest.approx(whole.never_reported_share, abs=0.06)


@pytest.mark.parametrize("draw", ["shuffle", "scored"])
def test_under_a_mix_it_is_put_together_from_the_groups(draw):
    mix = {"method": "static", "group": "topic", "shares": [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}
    drawer = drawer_of(policy_of(DRAWS[draw], mix), unknown=0.3)
    summary = drawer.summary(ALL)
    assert summary.effective_sample_ratio == pytest.approx(drawer.effective_sample_ratio())
    if draw == "shuffle":
        # 4 of 10 parts for a seventh of the examples.
        size = -(-SIZE // 7)
        assert summary.largest_share == pytest.approx(0.4 / size, rel=1e-3)
    else:
        assert summary.never_reported_share == pytest.approx(drawer.never_reported / drawer.drawable)


def test_of_candidates_that_are_others_at_each_step_no_width_is_told():
    """It would be that of 160 of 3000: an alert of a narrow draw would never be silent."""
    summary = drawer_of(policy_of(DRAWS["candidate_pool"]), unknown=0.3).summary(ALL)
    assert np.isnan([summary.effective_sample_ratio, summary.largest_share]).all()
    assert summary.never_reported_share == pytest.approx(0.3, abs=0.05)


def test_many_groups_are_looked_at_a_few_at_a_time(monkeypatch):
    """So that no look at a run takes long; what is not known yet is not told, and what changed is seen in turn."""
    mix = {"method": "static", "group": "topic", "shares": [1 / 40] * 40}
    drawer = drawer_of(policy_of(SCORED, mix), unknown=0.3, groups=40)
    counted, kind = [], type(next(iter(drawer._groups.values())).drawer)
    before = kind.summary

    def summary_counted(self, most):
        counted.append(self)
        return before(self, most)

    monkeypatch.setattr(kind, "summary", summary_counted)
    for looks in range(AT_ONCE, 40 + AT_ONCE, AT_ONCE):
        summary = drawer.summary(ALL)
        assert (len(counted), not np.isnan(summary.effective_sample_ratio)) == (looks, looks >= 40)
    assert summary.effective_sample_ratio == pytest.approx(drawer.effective_sample_ratio())
    assert summary.never_reported_share == pytest.approx(drawer.never_reported / drawer.drawable)
    for _ in range(7):
        drawer.summary(ALL)
    # Nobody twice before everybody once.
    assert {counted.count(one) for one in counted} == {2, 3}


def test_a_mass_above_a_part_of_the_total_is_found_wherever_it_is():
    leaves = np.full(100_000, 1000, np.uint32)
    leaves[77_777] = 1000 * 100_000 // (GREAT - 8)
    tree = MassTree(leaves)
    # Among 100 evenly spaced ones it is not.
    assert tree.greatest(Law(), 100) == leaves[77_777]
    leaves[77_777] = 2000
    tree = MassTree(leaves)
    assert (tree.greatest(Law(), 100), tree.greatest(Law(), 100_000)) == (1000, 2000)


def test_masses_that_a_law_gives_count_as_it_gives_them():
    leaves = np.array([5, UNSEEN, 0, 9], np.uint32)
    tree = MassTree(leaves)
    assert tree.greatest(Law(unseen=3, extra=2), 10) == 11
    assert tree.greatest(Law(unseen=30, extra=2), 10) == 32
    assert MassTree(np.zeros(4, np.uint32)).greatest(Law(), 10) == 0


def test_the_share_that_is_not_known_leaves_out_who_is_retired():
    column = np.array([np.nan, 1.0, np.nan, 2.0, np.nan, 3.0], np.float32)
    assert unknown_share(column, NOTHING, 10) == 0.5
    assert unknown_share(column, np.array([0, 5]), 10) == 0.5
    assert unknown_share(column, np.array([0, 2]), 10) == 0.25
    # Every other one: all that are left are not known.
    assert unknown_share(column, np.array([1, 2]), 3) == 1.0
    assert np.isnan(unknown_share(column, np.arange(6), 10))
