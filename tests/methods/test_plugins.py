"""Methods that users install: found by their entry points, and refused by name where they are faulty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard import weigh
from steelyard_server import plugins
from steelyard_server.catalogue import entries, find
from steelyard_server.policies import draw
from steelyard_server.policies.policy import parse_policy

Install = Callable[..., None]

RULE = """
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from steelyard.weigh import Rule, Source

@dataclass(frozen=True)
class Halves(Rule):
    "Counts every example a half."
    method: ClassVar[str] = "halves"
    source: ClassVar[Source] = Source("nobody", "nowhere")
    never_reported: ClassVar[str] = "The same."
    reads: ClassVar[str] = "nothing"
    share: float = 0.5
    "How much."

    def weights(self, losses, context):
        return np.full_like(losses, self.share)
"""
DRAW = """
from typing import ClassVar, Literal
from steelyard_server.methods import Source
from steelyard_server.policies.draw.shuffle import Shuffle

class Mine(Shuffle):
    "A shuffle by another name."
    source: ClassVar[Source] = Source("nobody", "nowhere")
    never_reported: ClassVar[str] = "As all."
    method: Literal["mine"] = "mine"
"""

MIX = """
from typing import ClassVar, Literal
import numpy as np
from steelyard_server.methods import Mix, Source

class Last(Mix):
    "Draws from the last group alone."
    source: ClassVar[Source] = Source("nobody", "nowhere")
    never_reported: ClassVar[str] = "As all of their group."
    method: Literal["last"] = "last"

    def masses(self, state, sizes, step):
        return (np.arange(len(sizes)) == np.flatnonzero(sizes)[-1]).astype(np.float64)
"""


def test_a_rule_is_found_where_it_is_asked_for(install: Install) -> None:
    install("halves_package", RULE, {"halves": "halves_package:Halves"})
    assert "halves" not in weigh.METHODS
    found = weigh.weights(np.ones(3), {"method": "halves", "share": 0.25})
    assert found.tolist() == [0.25, 0.25, 0.25]
    assert weigh.to_config(weigh.parse({"method": "halves"})) == {"method": "halves", "share": 0.5}


def test_looking_for_one_method_imports_no_other(install: Install) -> None:
    install("halves_package", RULE, {"halves": "halves_package:Halves"})
    install("broken_package", "raise RuntimeError('at import')", {"broken": "broken_package:Broken"})
    weigh.parse({"method": "halves"})
    with pytest.raises(ValueError, match=r"entry point 'broken' \(broken_package:Broken\) of broken_package 1.0 cannot be imported: RuntimeError: at import"):  # fmt: skip  # noqa: E501
        weigh.parse({"method": "broken"})


def test_a_misspelt_name_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'linupper'"):
        weigh.parse({"method": "linuper"})


def test_a_server_registers_all_and_tells_of_each_that_is_faulty(install: Install) -> None:
    install("halves_package", RULE, {"halves": "halves_package:Halves"})
    install("mine_package", DRAW, {"mine": "mine_package:Mine"})
    install("broken_package", "import no_such_module", {"broken": "broken_package:Broken"})
    [fault] = plugins.register()
    assert fault == (
        "entry point 'broken' (broken_package:Broken) of broken_package 1.0 cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert plugins.register(), "again, and the good ones are still there"
    policy = parse_policy({"method": "mine"}, {"method": "halves"})
    assert policy.canonical()["weigh"]["share"] == 0.5
    [entry] = find("halves")
    assert (entry.family, entry.origin, entry.summary) == (
        "weigh",
        "halves_package",
        "Counts every example a half.",
    )
    assert [(one.name, one.default, one.doc) for one in entry.parameters] == [("share", 0.5, "How much.")]


def test_a_real_server_serves_by_a_draw_that_is_installed_beside_it(install: Install, tmp_path: Any) -> None:
    install("mine_package", DRAW, {"mine": "mine_package:Mine"})
    with steelyard.testing.server(tmp_path / "data") as client:
        client.create_dataset("d", size=10)
        run = client.create_run("r", dataset="d", batch_size=5, draw={"method": "mine"})
        with run.join() as session:
            seen = np.concatenate([session.next().ids, session.next().ids])
    assert sorted(seen) == list(range(10))


def test_a_real_server_mixes_by_a_method_that_is_installed_beside_it(
    install: Install, tmp_path: Any, method_contract: Callable[..., None]
) -> None:
    install("last_package", MIX, {"last": "last_package:Last"})
    with steelyard.testing.server(tmp_path / "data") as client:
        client.create_dataset("d", size=12)
        client.set_column("d", "group", np.repeat([0.0, 1.0, 2.0], 4))
        run = client.create_run("r", dataset="d", batch_size=4, mix={"method": "last"})
        with run.join() as session:
            assert sorted(session.next().ids) == [8, 9, 10, 11]
    method_contract({"method": "last"})


@pytest.mark.parametrize("where", ["client", "server"])
def test_a_trainer_weighs_by_an_installed_rule_here_and_on_the_server(
    install: Install, tmp_path: Any, where: str
) -> None:
    install("halves_package", RULE.replace('"nothing"', '"losses"'), {"halves": "halves_package:Halves"})
    with steelyard.testing.server(tmp_path / "data") as client:
        client.create_dataset("d", size=10)
        rule = {"method": "halves", "share": 0.75, "where": where}
        run = client.create_run("r", dataset="d", batch_size=5, weigh=rule)
        with run.join() as session:
            weights = session.report(session.next(), np.ones(5, np.float32))
    assert weights is not None
    assert np.asarray(weights).tolist() == [0.75] * 5


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("@dataclass(frozen=True)", ""), "expected Halves to be a frozen dataclass"),
        (("@dataclass(frozen=True)", "@dataclass"), "expected Halves to be a frozen dataclass"),
        (('"halves"', '"Halves!"'), "expected its method to be called 'halves' too, got 'Halves!'"),
        (("def weights", "def weigh"), "Halves does not define weights"),
        (('Source("nobody", "nowhere")', '"nobody"'), "expected Halves.source to be a steelyard.source"),
        (('"The same."', "None"), "expected Halves.never_reported to say"),
        (("class Halves(Rule)", "class Halves"), "expected a subclass of steelyard.weigh.rule.Rule"),
        (("class Halves(Rule):", "def Halves():"), "expected a class, got <function"),
    ],
)
def test_what_is_no_method_is_refused_by_name(install: Install, change: tuple[str, str], fault: str) -> None:
    assert change[0] in RULE
    source = RULE.replace(*change)
    if "def Halves" in source:
        source = source.replace("@dataclass(frozen=True)\n", "")
    install("halves_package", source, {"halves": "halves_package:Halves"})
    with pytest.raises(ValueError, match="entry point 'halves'") as caught:
        weigh.parse({"method": "halves"})
    assert fault in str(caught.value)


def test_a_name_that_is_taken_is_refused_and_the_built_in_one_stays(install: Install) -> None:
    install("bad_package", DRAW.replace('"mine"', '"shuffle"'), {"shuffle": "bad_package:Mine"})
    before = draw.METHODS["shuffle"]
    assert plugins.register() == [
        "entry point 'shuffle' (bad_package:Mine) of bad_package 1.0: draw: the name 'shuffle' of Mine is built in"
    ]
    assert draw.METHODS["shuffle"] is before


def test_two_packages_cannot_share_a_name(install: Install) -> None:
    install("mine_package", DRAW, {"mine": "mine_package:Mine"})
    install("other_package", DRAW, {"mine": "other_package:Mine"})
    [fault] = plugins.register()
    assert "of other_package 1.0: draw: the name 'mine' of Mine is taken by mine_package" in fault


def test_every_method_has_an_entry_and_an_unknown_one_is_told_the_nearest() -> None:
    listed = [(entry.family, entry.name) for entry in entries()]
    assert listed == sorted(listed)
    assert {name for family, name in listed if family == "draw"} == set(draw.METHODS)
    with pytest.raises(LookupError, match="did you mean 'shuffle'"):
        find("shufle")
