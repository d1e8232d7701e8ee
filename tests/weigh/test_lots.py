"""The lots that random rules draw."""

import numpy as np
from scipy import stats

from steelyard.weigh.lots import lots


def test_they_are_the_raw_words_of_philox_at_seed_and_step() -> None:
    words = np.random.Philox(key=[7, 0x5745494748], counter=[0, 0, 2, 5]).random_raw(9)
    expected = [((int(word) >> 12) + 0.5) / 2**52 for word in words]
    assert lots(7, 5, 9, stream=2).tolist() == expected


def test_a_position_has_its_lot_whatever_the_batch_holds_besides() -> None:
    many = lots(7, 5, 1000)
    np.testing.assert_array_equal(lots(7, 5, 10), many[:10])
    for other in (lots(8, 5, 1000), lots(7, 6, 1000), lots(7, 5, 1000, stream=1), lots(-7, 5, 1000)):
        assert not np.isin(other, many).any()
    assert lots(2**64 + 7, 5, 3).tolist() == many[:3].tolist()


def test_they_are_uniform_and_never_at_an_end() -> None:
    together = np.concatenate([lots(1, step, 100) for step in range(200)])
    assert stats.kstest(together, "uniform").pvalue > 1e-3
    assert 0.0 < together.min() < together.max() < 1.0
    assert abs(np.corrcoef(together[:-1], together[1:])[0, 1]) < 0.03
