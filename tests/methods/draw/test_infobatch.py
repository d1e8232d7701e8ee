"""InfoBatch: the authors' choice and lengths, an unbiased gradient up to the truncation, and a biased one without."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.draw.infobatch import Infobatch
from steelyard_server.policies.draw.rows import Moment, Rows
from steelyard_server.policies.policy import PolicyError, parse_policy

NAN = float("nan")
LOSSES = [0.5, 1.0, 2.0, 4.0]


def test_nothing_is_pruned_before_the_first_report(
    golden: Callable[[str], Any], rows_of: Callable[..., Rows]
) -> None:
    assert [Infobatch().initial] * 4 == golden("infobatch/init scores")
    kept = Infobatch().keep(rows_of(last_loss=[NAN] * 4), Moment(0, 0, 1))
    assert kept is not None
    assert kept.weight is not None
    assert kept.mask.all()
    assert kept.weight.tolist() == [1.0] * 4


def test_half_of_what_is_below_the_mean_stays_with_twice_the_weight(
    golden: Callable[[str], Any], rows_of: Callable[..., Rows]
) -> None:
    expected = golden("infobatch/prune losses [.5,1,2,4] ratio .5 seed 0")
    assert np.mean(LOSSES) == expected["mean"]
    seen = set()
    for seed in range(20):
        kept = Infobatch().keep(rows_of(last_loss=LOSSES), Moment(0, 0, seed))
        assert kept is not None
        assert kept.weight is not None
        assert 4 - kept.mask.sum() == expected["n_pruned"]
        seen.add((tuple(np.flatnonzero(kept.mask).tolist()), tuple(kept.weight[kept.mask].tolist())))
    # Which of the two well-learned ones stays is a lot; in the authors' run it was the second.
    theirs = np.array(expected["weights"])
    assert seen == {(tuple(expected["kept"]), tuple(theirs[expected["kept"]])), ((0, 2, 3), (2.0, 1.0, 1.0))}


def test_who_stays_is_the_same_in_every_version(rows_of: Callable[..., Rows]) -> None:
    kept = Infobatch().keep(rows_of(last_loss=np.arange(1000) % 7), Moment(40, 3, 2**63 + 5))
    assert kept is not None
    assert hashlib.blake2b(np.packbits(kept.mask).tobytes(), digest_size=8).hexdigest() == "257e6c0802b72e6a"


def test_the_ratio_that_is_kept_is_clamped(golden: Callable[[str], Any]) -> None:
    assert Infobatch(prune_ratio=0.95).keep_ratio == golden("infobatch/keep_ratio clamp for prune_ratio .95")
    assert Infobatch(prune_ratio=0).keep_ratio == 1


def test_pruning_ends_after_its_share_of_the_epochs(
    golden: Callable[[str], Any], rows_of: Callable[..., Rows]
) -> None:
    lengths = golden("infobatch/len of successive resets num_epochs=8 delta=.875 (index0 = constructor)")
    assert golden("infobatch/prune losses [.5,1,2,4] ratio .5 seed 0")["stop_prune"] == 8 * 0.875
    for epoch in range(10):
        kept = Infobatch(num_epochs=8).keep(rows_of(last_loss=LOSSES), Moment(0, epoch, 1))
        assert kept is not None
        # Theirs reset once more, when it was made.
        assert kept.mask.sum() == lengths[epoch + 1], epoch
        endless = Infobatch().keep(rows_of(last_loss=LOSSES), Moment(0, epoch, 1))
        assert endless is not None
        assert endless.mask.sum() == 3


def test_below_the_mean_is_strict_and_the_retired_have_no_say(rows_of: Callable[..., Rows]) -> None:
    kept = Infobatch().keep(rows_of(last_loss=[2.0] * 6), Moment(0, 0, 1))
    assert kept is not None
    assert kept.mask.all()
    kept = Infobatch().keep(rows_of(last_loss=[1, 2, 3, 1e30], retired=[3]), Moment(0, 0, 1))
    # The mean of 1, 2, 3 is 2; of the one below, int(.5) stays.
    assert kept is not None
    assert kept.mask.tolist() == [False, True, True, True]


def expectation(draw: Infobatch, rows: Rows, resets: int) -> Any:
    """The mean over resets of mask * weight of each example."""
    total = np.zeros(rows.size)
    for reset in range(resets):
        kept = draw.keep(rows, Moment(reset, 0, 5))
        assert kept is not None
        assert kept.weight is not None
        total += kept.mask * (kept.weight if draw.gives_weights else 1.0)
    return total / resets


@pytest.mark.parametrize(("prune_ratio", "well"), [(0.5, 60), (0.5, 61), (0.7, 60), (0.7, 55)])
def test_the_expected_gradient_is_the_full_one_up_to_the_truncation(
    rows_of: Callable[..., Rows], prune_ratio: float, well: int
) -> None:
    rng = np.random.default_rng(8)
    losses = np.r_[rng.uniform(0, 1, well), rng.uniform(10, 11, 40)]
    gradients = rng.normal(0, 1, (len(losses), 3)) + 2 * (losses < 1)[:, None]
    rows, resets = rows_of(last_loss=losses), 1500
    draw = Infobatch(prune_ratio=prune_ratio)
    keep, stay = draw.keep_ratio, int(draw.keep_ratio * well)
    weight = expectation(draw, rows, resets)
    # Each well-learned one stays in stay / well of the resets with 1 / keep: with p its share, the deviation of the
    # mean is sqrt(p (1 - p) / resets) / keep. Five of them over 61 examples: an error rate below 4e-5.
    share = stay / well
    error = 5 * np.sqrt(share * (1 - share) / resets) / keep
    assert weight[well:].tolist() == [1.0] * 40
    np.testing.assert_allclose(weight[:well], stay / (keep * well), atol=error)
    full, expected = gradients.mean(axis=0), (weight[:, None] * gradients).mean(axis=0)
    # What int() cuts off is less than one example of weight 1 / keep.
    lost = np.abs(gradients[:well].mean(axis=0)) * (1 / keep) / len(losses)
    # The noise of the mean of so many lots is bounded by that of independent ones.
    noise = 5 * np.sqrt(share * (1 - share) / resets) / keep * np.sqrt((gradients[:well] ** 2).sum(axis=0))
    assert (np.abs(expected - full) <= lost * (keep * well - stay) + noise / len(losses)).all()
    without = expectation(Infobatch(prune_ratio=prune_ratio, rescale=False), rows, 50)
    biased = (without[:, None] * gradients).mean(axis=0)
    assert (np.abs(biased - full) > 10 * np.abs(expected - full)).all()


def test_a_run_prunes_from_its_second_epoch_on_and_serves_the_weights(life: Any) -> None:
    run = life({"method": "infobatch"}, 20, 5, weigh="infobatch_rescale")
    for _ in range(4):
        drawn = run.draw()
        run.report(drawn, loss=np.where(drawn.ids < 12, 0.1, 2.0))
        assert drawn.weight.tolist() == [1.0] * 5
        assert (drawn.probability, drawn.uniform_probability) == (None, 1 / 20)
    served = [run.draw() for _ in range(2)]
    ids = np.concatenate([drawn.ids for drawn in served])
    weights = np.concatenate([drawn.weight for drawn in served])
    assert (weights == np.where(ids < 12, 2.0, 1.0)).all()
    assert served[0].uniform_probability == 1 / 14
    assert np.count_nonzero(run.column("own:copies")) == 14


def test_appended_ids_count_as_not_yet_learned_from_the_next_epoch_on(life: Any) -> None:
    run = life({"method": "infobatch"}, 8, 4, weigh="infobatch_rescale")
    for _ in range(2):
        drawn = run.draw()
        run.report(drawn, loss=np.full(4, 0.1))
    run.grow(10)
    # Ten examples: eight of 0.1 and two of 3, so four of the eight stay.
    drawn = [run.draw(), run.draw()]
    ids = np.concatenate([one.ids for one in drawn])[:6]
    assert {8, 9} <= set(ids.tolist())


def test_each_group_of_a_mix_goes_through_epochs_of_its_own(life: Any) -> None:
    run = life(
        {"method": "infobatch"},
        60,
        10,
        columns={"group": np.arange(60) % 3 == 0},
        weigh="infobatch_rescale",
        mix={"method": "static", "shares": [0.5, 0.5]},
    )
    count, heavy = np.zeros(60), np.zeros(60)
    for _ in range(160):
        drawn = run.draw()
        run.report(drawn, loss=np.where(drawn.ids < 30, 0.1, 2.0))
        count += np.bincount(drawn.ids, minlength=60)
        heavy += np.bincount(drawn.ids, drawn.weight, minlength=60)
    small = np.arange(60) % 3 == 0
    assert count[small].sum() == count[~small].sum() == 800
    # Within a group, what is well learned comes half as often and counts twice.
    for group in (small, ~small):
        well, rest = group & (np.arange(60) < 30), group & (np.arange(60) >= 30)
        assert count[well].mean() / count[rest].mean() == pytest.approx(0.5, abs=0.05)
        assert heavy[well].mean() / heavy[rest].mean() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("weigher", ["uniform", "linupper", "importance"])
def test_its_weights_must_reach_the_objective(weigher: str) -> None:
    with pytest.raises(PolicyError, match="infobatch_rescale|count twice"):
        parse_policy({"method": "infobatch"}, {"method": weigher})


def test_its_weights_may_be_done_without_on_purpose_and_not_handed_on_where_there_are_none() -> None:
    parse_policy({"method": "infobatch"}, {"method": "infobatch_rescale"})
    parse_policy({"method": "infobatch", "rescale": False}, {"method": "uniform"})
    for draw in ({"method": "shuffle"}, {"method": "infobatch", "rescale": False}):
        with pytest.raises(PolicyError, match="gives none here"):
            parse_policy(draw, {"method": "infobatch_rescale"})


@pytest.mark.parametrize(
    "bad", [{"prune_ratio": 1}, {"prune_ratio": -0.1}, {"num_epochs": 0}, {"delta": 1.1}]
)
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Infobatch.parse(bad)
