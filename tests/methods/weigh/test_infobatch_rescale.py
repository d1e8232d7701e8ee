"""InfoBatch, its weighing half."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, weights


def test_the_weights_of_the_kept_are_those_of_the_authors_code(golden: Callable[[str], Any]) -> None:
    expected = golden("infobatch/prune losses [.5,1,2,4] ratio .5 seed 0")
    kept, by_example = expected["kept"], np.array(expected["weights"])
    losses = np.array([0.5, 1.0, 2.0, 4.0])[kept]
    np.testing.assert_array_equal(
        weights(losses, {"method": "infobatch_rescale"}, weight=by_example[kept]), [2.0, 1.0, 1.0]
    )
    # Among the two below the mean, one was pruned: the weight is 1 over the part that stays.
    assert by_example[1] == 1 / (1 - 0.5)


def test_with_the_weights_the_mean_over_an_epoch_is_unbiased_and_without_them_it_is_not() -> None:
    generator = np.random.Generator(np.random.Philox(3))
    losses, gradients = generator.gamma(1.0, size=400), generator.normal(size=400)
    gradients += losses  # what is pruned differs from what is kept
    easy = losses < losses.mean()
    rescaled, plain = [], []
    for _ in range(2000):
        kept = ~easy | (generator.random(400) < 0.5)
        given = np.where(easy, 2.0, 1.0)[kept]
        w = weights(losses[kept], {"method": "infobatch_rescale"}, weight=given)
        rescaled.append(np.sum(w * gradients[kept]) / 400)
        plain.append(np.mean(gradients[kept]))
    error = np.std(rescaled) / np.sqrt(len(rescaled))
    assert abs(np.mean(rescaled) - gradients.mean()) < 4 * error  # one in 16000 by chance
    assert abs(np.mean(plain) - gradients.mean()) > 20 * error


def test_without_weights_of_the_draw_all_are_one_and_padding_is_nothing() -> None:
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(
        weights(np.full(3, np.nan), {"method": "infobatch_rescale"}, mask=mask), [1, 0, 1]
    )
    given = np.array([np.nan, 2.0, -1.0])
    np.testing.assert_array_equal(
        weights(np.ones(3), {"method": "infobatch_rescale"}, weight=given), [1, 2, 1]
    )


def test_it_is_known_at_the_draw() -> None:
    rule = parse({"method": "infobatch_rescale"})
    assert rule.reads == "draw"
    assert weights(np.ones(2, np.float32), rule, weight=np.array([2.0, 1.0])).dtype == np.float32
    with pytest.raises(ValueError, match=r"expected weight of shape \(2,\)"):
        weights(np.ones(2), rule, weight=np.ones(3))
