"""Selective-Backprop."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import Context, parse, remember, server_only, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])
OFFICIAL = {"method": "selective_backprop", "warmup_steps": 0}
COMPOSER = {"method": "selective_backprop", "form": "composer", "total_steps": 100}


@pytest.mark.parametrize("beta", [1, 2, 3])
def test_the_official_probabilities_are_those_of_the_authors_code(
    golden: Callable[[str], Any], beta: int
) -> None:
    expected = golden(f"selective_backprop/official beta={beta} hist=batch [.5,1,2,4]")["p"]
    rule: Any = parse({**OFFICIAL, "beta": beta})
    np.testing.assert_allclose(rule.probabilities(LOSSES, Context()), expected, rtol=0, atol=5.1e-7)


def test_the_composer_probabilities_are_those_of_its_code(golden: Callable[[str], Any]) -> None:
    expected = golden("selective_backprop/composer keep=.5 N=4 (by ascending rank)")
    rule: Any = parse(COMPOSER)
    order = [2, 0, 3, 1]
    result = rule.probabilities(LOSSES[order], Context())
    np.testing.assert_allclose(result, np.array(expected["p"])[order], rtol=0, atol=5.1e-7)


def test_a_loss_is_ranked_among_the_last_1024() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    batches, past, seen = generator.gamma(2.0, size=(30, 100)), None, np.empty(0)
    rule: Any = parse({**OFFICIAL, "beta": 1.0})
    for losses in batches:
        seen = np.concatenate([seen, losses])[-1024:]
        expected = [np.mean(seen < loss) for loss in losses]
        np.testing.assert_allclose(rule.probabilities(losses, Context(past=past)), expected, rtol=1e-12)
        past = remember(rule, losses, past=past)
        np.testing.assert_array_equal(past["losses"], seen)


def test_each_is_chosen_as_often_as_its_probability_says() -> None:
    rule: Any = parse({**OFFICIAL, "beta": 2.0, "p_min": 0.05})
    losses = np.arange(16.0)
    chosen = np.array([weights(losses, rule, seed=5, step=step) > 0 for step in range(4000)])
    p = rule.probabilities(losses, Context())
    assert p[0] == 0.05
    error = np.sqrt(p * (1 - p) / len(chosen))
    assert (abs(chosen.mean(axis=0) - p) < 4.5 * error).all()  # one in 9000 by chance
    # By lots of their own: the number chosen has the variance of independent ones.
    assert chosen.sum(axis=1).var() == pytest.approx(np.sum(p * (1 - p)), rel=0.1)
    # The expected sum of what is trained on is the published objective, sum p_i L_i.
    trained = (chosen * losses).sum(axis=1)
    assert abs(trained.mean() - np.sum(p * losses)) < 4 * trained.std() / np.sqrt(len(trained))


def test_the_chosen_share_the_weight_of_all_and_of_none_nothing_remains() -> None:
    for step in range(50):
        result = weights(LOSSES, OFFICIAL, step=step)
        k = np.count_nonzero(result)
        np.testing.assert_allclose(result[result > 0], 4 / k if k else [])
    np.testing.assert_array_equal(weights(np.ones(4), OFFICIAL), np.zeros(4))


def test_the_first_epoch_is_chosen_whole() -> None:
    config = {"method": "selective_backprop"}
    for step, whole in [(0, True), (2, True), (3, False)]:
        result = weights(np.ones(4), config, step=step, examples=9)
        np.testing.assert_array_equal(result, np.ones(4) if whole else np.zeros(4))
    with pytest.raises(ValueError, match="expected the number of examples, .* or warmup_steps"):
        weights(LOSSES, config)


def test_the_composer_form_chooses_its_share_without_replacement() -> None:
    losses = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
    rule: Any = parse(
        {**COMPOSER, "interrupt": 0, "start": 0.0, "end": 1.0, "total_steps": 10**6, "keep": 0.4}
    )
    chosen = np.array([weights(losses, rule, seed=2, step=step) > 0 for step in range(5000)])
    assert set(chosen.sum(axis=1)) == {2}
    # Exactly: i first and then j, or j first and then i.
    p = rule.probabilities(losses, Context())
    powers = (np.arange(5) * 0.2 + 0.1) ** 1.5
    np.testing.assert_allclose(p[[1, 3, 0, 2, 4]], powers / powers.sum(), rtol=1e-12)
    for i in range(5):
        for j in range(i):
            both = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
            error = np.sqrt(both * (1 - both) / len(chosen))
            assert abs(np.mean(chosen[:, i] & chosen[:, j]) - both) < 4.5 * error


def test_the_composer_form_is_active_in_its_part_of_the_training_and_at_every_other_step() -> None:
    active = [step for step in range(100) if (weights(np.arange(8.0), COMPOSER, step=step) == 0).any()]
    assert active == list(range(50, 90, 2))
    assert remember(COMPOSER, LOSSES) == {}


def test_training_spends_itself_on_the_biggest_losers(fit: Callable[..., Any]) -> None:
    # Nine in ten examples need one direction, the tenth another: plain training is slow at that one.
    generator = np.random.Generator(np.random.Philox(6))
    rare = np.arange(1000) % 10 == 0
    inputs = np.where(rare[:, np.newaxis], [0.0, 1.0], [1.0, 0.0]) * generator.normal(size=(1000, 1))
    labels = inputs @ np.array([1.0, 1.0])

    def error(config: Any) -> float:
        return float(np.mean((inputs[rare] @ fit(config, inputs, labels, steps=100) - labels[rare]) ** 2))

    uniform = error({"method": "uniform"})
    assert error(OFFICIAL) < 0.1 * uniform
    assert error({**COMPOSER, "start": 0.0, "end": 1.0, "interrupt": 0, "keep": 0.25}) < 0.5 * uniform
    assert error({**OFFICIAL, "beta": 0.0}) == pytest.approx(uniform), "beta 0 prefers nothing"


@pytest.mark.parametrize("config", [OFFICIAL, {**COMPOSER, "start": 0.0, "end": 1.0, "interrupt": 0}])
def test_any_losses_give_finite_weights_and_a_past_of_numbers(config: Any) -> None:
    losses = np.array([1e30, -3e38, np.nan, np.inf, 0.0, 1.0], np.float32)
    mask = np.array([True, True, True, True, True, False])
    for step in range(20):
        result = weights(losses, config, step=step, mask=mask)
        assert np.isfinite(result).all()
        np.testing.assert_array_equal(result[[2, 3, 5]], [0, 0, 0])
    for past in remember(config, losses, mask=mask).values():
        np.testing.assert_allclose(past, [1e30, -3e38, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "composer"}, "total_steps: expected the number of steps"),
        (
            {"form": "composer", "total_steps": 9, "start": 0.6, "end": 0.5},
            "start: expected at most end, 0.5",
        ),
        ({"form": "other"}, "form: expected one of official, composer"),
        ({"beta": -1}, "beta: expected"),
        ({"p_min": 2}, "p_min: expected"),
        ({"keep": 0}, "keep: expected"),
        ({"warmup_steps": -1}, "warmup_steps: expected"),
    ],
)
def test_bad_parameters_are_named(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse({"method": "selective_backprop", **change})


def test_it_is_for_the_server_alone() -> None:
    assert server_only(parse(OFFICIAL)) is not None
    assert "draws lots" in str(server_only(parse(COMPOSER)))
