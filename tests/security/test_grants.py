"""Grants: what they allow, by name alone; nothing by default."""

import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.v1 import datasets_pb2, runs_pb2
from steelyard_server.runs.errors import Missing
from steelyard_server.security import rules
from steelyard_server.security.errors import Forbidden
from steelyard_server.security.grants import VERBS, Kind, Rights

KINDS: tuple[Kind, ...] = ("run", "dataset")
names = st.text("abc._-", min_size=1, max_size=12)
patterns = st.text("abc._-*?", min_size=1, max_size=8)
verbs = st.lists(st.sampled_from(VERBS), min_size=1, max_size=4)
grants = st.lists(
    st.builds(
        SimpleNamespace,
        verbs=verbs,
        runs=st.lists(patterns, max_size=3),
        datasets=st.lists(patterns, max_size=3),
    ),
    max_size=4,
)


def matches(pattern: str, name: str) -> bool:
    """The dumb way: every split that a * allows."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(matches(pattern[1:], name[at:]) for at in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and matches(pattern[1:], name[1:])


@given(grants, st.sampled_from(VERBS), names)
def test_a_verb_is_held_where_a_grant_of_it_has_a_pattern_that_fits(given_grants, verb, name):
    rights = Rights.of(given_grants)
    for kind in KINDS:
        expected = any(
            verb in one.verbs and any(matches(pattern, name) for pattern in getattr(one, f"{kind}s"))
            for one in given_grants
        )
        assert rights.holds(verb, kind, name) is expected


@given(grants, names)
def test_more_grants_never_allow_less(given_grants, name):
    few, all_ = Rights.of(given_grants[:-1]), Rights.of(given_grants)
    for verb in VERBS:
        for kind in KINDS:
            assert not few.holds(verb, kind, name) or all_.holds(verb, kind, name)


def test_nothing_is_held_without_a_grant():
    rights = Rights.of([])
    assert not any(rights.holds(verb, "run", "a") or rights.holds(verb, "dataset", "a") for verb in VERBS)
    assert not rights.everywhere


def test_a_name_too_long_to_exist_is_matched_by_the_star_alone():
    long = "a" * 100_000
    rights = Rights.of([SimpleNamespace(verbs=["read"], runs=["a*a*a*a"], datasets=["*"])])
    assert not rights.holds("read", "run", long)
    assert rights.holds("read", "dataset", long)


def test_everywhere_takes_one_grant_on_all_runs_and_all_datasets():
    halves = [
        SimpleNamespace(verbs=["admin"], runs=["*"], datasets=[]),
        SimpleNamespace(verbs=["admin"], runs=[], datasets=["*"]),
    ]
    assert not Rights.of(halves).everywhere
    assert Rights.of([SimpleNamespace(verbs=["admin"], runs=["a", "*"], datasets=["*"])]).everywhere == {
        "admin"
    }


MINE = Rights.of([SimpleNamespace(verbs=["read"], runs=["mine-*"], datasets=["ours"])])
RUNS = "/steelyard.v1.RunService/"


def judged(method, request, rights=MINE, dataset_of=lambda run: None):
    rules.judge(rules.row(method), rights, request, dataset_of)


def test_a_name_without_any_verb_is_as_if_it_were_not_there():
    with pytest.raises(Missing, match=re.escape("no run 'yours'")):
        judged(RUNS + "GetRun", runs_pb2.GetRunRequest(name="yours"))


def test_another_verb_than_the_one_held_is_forbidden_and_named():
    judged(RUNS + "GetRun", runs_pb2.GetRunRequest(name="mine-1"))
    with pytest.raises(Forbidden, match="expected admin to be granted on run 'mine-1'"):
        judged(RUNS + "DeleteRun", runs_pb2.DeleteRunRequest(name="mine-1"))


def test_creating_outside_the_patterns_is_forbidden_whether_the_name_is_taken_or_not():
    spec = runs_pb2.RunSpec(name="yours", dataset="ours")
    with pytest.raises(Forbidden, match="expected admin to be granted on run 'yours'"):
        judged(RUNS + "CreateRun", runs_pb2.CreateRunRequest(spec=spec))
    with pytest.raises(Forbidden, match="expected admin to be granted on dataset 'd'"):
        judged("/steelyard.v1.DatasetService/CreateDataset", datasets_pb2.CreateDatasetRequest(name="d"))


def test_a_fork_needs_its_parent_its_name_and_the_dataset_of_its_parent():
    grants = [
        SimpleNamespace(verbs=["read", "admin"], runs=["mine-*"], datasets=[]),
        SimpleNamespace(verbs=["read"], runs=[], datasets=["ours"]),
    ]
    rights = Rights.of(grants)
    asked = runs_pb2.ForkRequest(name="mine-1", new_name="mine-2")
    judged(RUNS + "Fork", asked, rights, {"mine-1": "ours"}.get)
    judged(RUNS + "Fork", asked, rights, {}.get)  # which the handler then does not find
    with pytest.raises(Missing, match="no dataset 'theirs'"):
        judged(RUNS + "Fork", asked, rights, {"mine-1": "theirs"}.get)
    with pytest.raises(Missing, match="no run 'yours'"):
        judged(RUNS + "Fork", runs_pb2.ForkRequest(name="yours", new_name="mine-2"), rights, lambda run: None)
    with pytest.raises(Forbidden, match="run 'yours'"):
        judged(RUNS + "Fork", runs_pb2.ForkRequest(name="mine-1", new_name="yours"), rights, lambda run: None)


def test_a_call_in_no_row_is_granted_to_nobody():
    with pytest.raises(Forbidden, match="granted to nobody"):
        rules.judge(
            None,
            Rights.of([SimpleNamespace(verbs=VERBS, runs=["*"], datasets=["*"])]),
            None,
            lambda run: None,
        )


def test_lists_show_what_may_be_read():
    response = runs_pb2.ListRunsResponse(
        runs=[runs_pb2.Run(spec=runs_pb2.RunSpec(name=name)) for name in ("a", "mine-1", "mine-2", "z")]
    )
    rules.shown(rules.METHODS[RUNS + "ListRuns"], MINE, response)
    assert [run.spec.name for run in response.runs] == ["mine-1", "mine-2"]
