"""Configurations of weigh rules: what is read, what is refused, and how the refusal reads."""

import json
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from steelyard.source import Source
from steelyard.weigh import METHODS, Context, Reads, Rule, parse, parse_where, server_only, to_config, weights
from steelyard.weigh.linupper import LinUpper
from steelyard.weigh.rule import Array
from steelyard.weigh.seed import SeedRule


@pytest.mark.parametrize("method", METHODS)
def test_a_method_alone_has_the_published_defaults(method: str) -> None:
    rule = parse({"method": method})
    assert type(rule) is METHODS[method]
    assert rule.method == method
    if isinstance(rule, SeedRule):
        expected = {"method": method, "r": 1.0, "delta": 1.0, "warmup_steps": 0, "min_range": 1e-6}
        assert to_config(rule) == expected


def test_a_rule_survives_its_configuration_and_json_and_pickle() -> None:
    rules = [
        LinUpper(r=0.4, warmup_steps=100, r_schedule=((100, 1.0), (2000, 0.4))),
        *(rule() for rule in METHODS.values()),
        parse({"method": "importance", "beta": 0.5, "normalise": "batch_max"}),
    ]
    for rule in rules:
        assert parse(json.loads(json.dumps(to_config(rule)))) == rule
        assert pickle.loads(pickle.dumps(rule)) == rule


def test_numbers_arrive_as_json_and_protobuf_send_them() -> None:
    rule = parse({"method": "linupper", "warmup_steps": 100.0, "r": 1, "r_schedule": [[10.0, 1], (20, 0.5)]})
    assert rule == LinUpper(warmup_steps=100, r=1.0, r_schedule=((10, 1.0), (20, 0.5)))
    assert [type(value) for value in (rule.warmup_steps, rule.r)] == [int, float]  # type: ignore[attr-defined]
    assert parse({"method": "linupper", "r": np.float32(0.5), "warmup_steps": np.int64(3)}) == LinUpper(
        r=0.5, warmup_steps=3
    )
    assert parse({"method": "linupper", "r_schedule": None}) == LinUpper()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "expected a method .*linupper.*, got only an empty configuration"),
        ({"r": 0.4}, "expected a method .*, got only r"),
        (
            {"method": "linuper"},
            "weigh.method: expected one of uniform, linupper, .*'linuper'; .* 'linupper'",
        ),
        ({"method": 3}, r"weigh.method: expected one of .*, got 3 \(int\)"),
        ({"method": "zzz"}, "got 'zzz'$"),
        ({"method": "linupper", "warmup": 3}, "linupper.*r, delta, warmup_steps.*'warmup'; .*'warmup_steps'"),
        ({"method": "linupper", "R": 3}, "got 'R'; did you mean 'r'?"),
        ({"method": "linupper", 3: 3}, r"got 3 \(int\)"),
        ({"method": "uniform", "r": 1.0}, "uniform has no parameters, got 'r'"),
        ({"method": "linupper", "r": 0}, "linupper.r: expected a number from 1e-06 to 1e.12, got 0"),
        ({"method": "linupper", "r": -1.0}, "got -1.0"),
        ({"method": "linupper", "r": float("nan")}, "got nan"),
        ({"method": "linupper", "r": 10**400}, "linupper.r: expected a number from"),
        ({"method": "linupper", "r": "0.4"}, r"linupper.r: expected a number, got '0.4' \(str\)"),
        ({"method": "linupper", "r": True}, r"expected a number, got True \(bool\)"),
        ({"method": "linupper", "clip": 0.5}, "linupper.clip: expected a number from 0 to 0.49, got 0.5"),
        ({"method": "linupper", "delta": 0.0}, "linupper.delta: expected a number from"),
        ({"method": "linupper", "min_range": 0.0}, "linupper.min_range: expected a number from 1e-30"),
        ({"method": "linupper", "warmup_steps": 1.5}, "expected an integer of at least 0, got 1.5"),
        ({"method": "linupper", "warmup_steps": -1}, "expected an integer of at least 0, got -1"),
        ({"method": "linupper", "warmup_steps": float("inf")}, "expected an integer of at least 0, got inf"),
        ({"method": "linupper", "warmup_steps": False}, r"expected an integer, got False \(bool\)"),
        ({"method": "linupper", "r_schedule": 3}, r"expected a list of \(step, number\) pairs, got 3"),
        ({"method": "linupper", "r_schedule": []}, r"expected a list of \(step, number\) pairs, got \[\]"),
        ({"method": "linupper", "r_schedule": [[1]]}, r"r_schedule\[0\]: expected a \(step, number\) pair"),
        ({"method": "linupper", "r_schedule": ["ab"]}, r"r_schedule\[0\]: expected a \(step, number\) pair"),
        ({"method": "linupper", "r_schedule": [[1, 0.0]]}, r"r_schedule\[0\] value: expected a number from"),
        (
            {"method": "linupper", "r_schedule": [[5, 1.0], [5, 0.4]]},
            r"r_schedule\[1\] step: expected one above 5, got 5",
        ),
        ({"method": "importance", "beta": 1.5}, "importance.beta: expected a number from 0 to 1, got 1.5"),
        (
            {"method": "importance", "normalise": "max"},
            "expected one of none, batch_max, run_max, got 'max'; did you mean 'run_max'",
        ),
        (
            {"method": "linupper", "where": "gpu"},
            "weigh.where: expected one of auto, server, client, got 'gpu'",
        ),
        ("linupper", "expected a mapping with a method, got 'linupper'"),
    ],
)
def test_a_bad_configuration_is_refused_with_both_sides(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(config)


def test_where_is_read_apart_from_the_rule() -> None:
    config = {"method": "linupper", "where": "client"}
    assert parse(config) == LinUpper()
    assert parse_where(config) == "client"
    assert parse_where({"method": "linupper"}) == "auto"
    assert "where" not in to_config(parse(config))


def test_weights_take_a_rule_as_well_as_its_configuration() -> None:
    losses = np.array([0.5, 1.0, 2.0])
    np.testing.assert_array_equal(
        weights(losses, LinUpper(r=0.4)), weights(losses, {"method": "linupper", "r": 0.4, "where": "server"})
    )


@dataclass(frozen=True)
class Lottery(Rule):
    """A rule that only the server can weigh by, for the reason that is set."""

    method: ClassVar[str] = "lottery"
    source: ClassVar[Source] = Source("none", "none")
    never_reported: ClassVar[str] = "They take part."
    reads: ClassVar[Reads] = "losses"
    column: bool = False
    past: bool = False
    lots: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return ("reference",) if self.column else ()

    @property
    def remembers(self) -> bool:
        return self.past

    @property
    def random(self) -> bool:
        return self.lots

    def weights(self, losses: Array, context: Context) -> Array:
        return losses


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (Lottery(column=True), "'reference'"),
        (Lottery(past=True), "remembers the batches before"),
        (Lottery(lots=True), "draws lots"),
    ],
)
def test_what_the_trainer_cannot_know_is_for_the_server_alone(
    rule: Lottery, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reason in str(server_only(rule))
    monkeypatch.setattr("steelyard.weigh.config.find", lambda name: Lottery)
    config = to_config(rule)
    assert parse({**config, "where": "server"}) == parse(config) == rule
    with pytest.raises(
        ValueError, match=f'"server" or "auto" for lottery, because .*{reason}.*; got "client"'
    ):
        parse({**config, "where": "client"})


def test_what_reads_the_batch_alone_may_be_weighed_anywhere() -> None:
    assert server_only(Lottery()) is None
    assert all(server_only(METHODS[name]()) is None for name in ("uniform", "linupper", "importance"))


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_says_where_it_comes_from(method: str) -> None:
    rule = METHODS[method]
    assert rule.source.paper
    assert rule.source.where
    assert rule.never_reported.endswith(".")
    assert rule.reads in ("nothing", "losses", "probability", "draw")
