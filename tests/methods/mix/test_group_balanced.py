"""Groups alike, whatever their sizes."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix.group_balanced import GroupBalanced
from steelyard_server.policies.mix.static import Static


def test_every_group_that_is_not_empty_has_the_same_mass() -> None:
    sizes = np.array([1000, 0, 3, 50])
    np.testing.assert_array_equal(GroupBalanced().masses({}, sizes, 0), [1, 0, 1, 1])


@pytest.mark.parametrize(
    ("sizes", "want"), [([500, 49, 25], [20, 1, 1]), ([500, 49, 3], [50, 4, 1]), ([40, 0, 20], [2, 0, 1])]
)
def test_the_number_of_subclasses_follows_its_formula(sizes: list[int], want: list[int]) -> None:
    filled = [n for n in sizes if n]
    plain = [max(1, n // max(min(filled), 10)) if n else 0 for n in sizes]
    assert plain == want
    np.testing.assert_array_equal(GroupBalanced(by="subclasses").masses({}, np.array(sizes), 0), want)


def test_a_rare_class_is_seen_as_often_as_a_common_one_and_proportionally_it_is_not() -> None:
    sizes = np.array([9900, 100])
    seen = {}
    for rule in (GroupBalanced(), Static()):
        masses = rule.masses(rule.start(sizes), sizes, 0)
        seen[rule.method] = 1000 * masses / masses.sum()
    np.testing.assert_allclose(seen["group_balanced"], [500, 500])
    assert seen["static"][1] == pytest.approx(10)


def test_classes_by_subclasses_get_what_their_clusters_get_together() -> None:
    # Classes of 40 and 20, cut into 2 clusters of 20 and 1: clusters alike, or classes by m_c, is the same law.
    clusters = GroupBalanced().masses({}, np.array([20, 20, 20]), 0)
    classes = GroupBalanced(by="subclasses").masses({}, np.array([40, 20]), 0)
    np.testing.assert_allclose([clusters[:2].sum(), clusters[2]], classes)


def test_groups_set_anew_are_balanced_at_once() -> None:
    rule = GroupBalanced()
    state = rule.grown(rule.start(np.array([10, 10])), np.array([1, 4, 15]))
    np.testing.assert_array_equal(rule.masses(state, np.array([1, 4, 15]), 7), [1, 1, 1])


def test_a_subclass_of_no_size_is_refused() -> None:
    with pytest.raises(ValidationError):
        GroupBalanced(by="subclasses", least=0)
