"""The access file: what is accepted, what is refused and how that is said; and who is meant."""

import re
from pathlib import Path

import pytest

from steelyard_server.security import principals
from steelyard_server.security.evidence import Certificate, Hashed, Local, Proven
from steelyard_server.security.principals import TableError

ROOT = Path(__file__).resolve().parents[2]


def table(text):
    return principals.parse(text.encode())


def test_the_example_of_the_manual_is_right_and_means_what_it_says():
    [example] = re.findall(
        r"```toml\n(.*?)```", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.DOTALL
    )
    read = table(example)
    trainers = read.recognise(Certificate(frozenset({"spiffe://cluster.local/ns/training/sa/gpt"}), ""))
    assert trainers is not None
    assert trainers.principal == "gpt-trainers"
    assert trainers.rights.holds("draw", "run", "gpt-a")
    assert not trainers.rights.holds("admin", "run", "gpt-a")
    digest = "5a2a99312b860376ba1feb2ab01f45fd9563c01f3c92a43093f6d5ed00e7436a"
    ada = read.recognise(Hashed(digest))
    assert ada is not None
    assert ada.rights.holds("admin", "dataset", "ada-d")
    assert not ada.rights.holds("admin", "dataset", "stdlib")
    claims = {"sub": "system:serviceaccount:sweeps:runner", "team": ["vision", "speech"]}
    sweeps = read.recognise(Proven(claims, 12.0))
    assert sweeps is not None
    assert (sweeps.quota.calls_per_second, sweeps.quota.bytes_per_second) == (200.0, float(32 << 20))
    assert sweeps.expires_at == 12.0
    here = read.recognise(Local())
    assert here is not None
    assert here.principal == "here"
    operator = read.recognise(Certificate(frozenset({"operator.steelyard.internal"}), "x"))
    assert operator is not None
    assert operator.rights.everywhere == {"read", "admin"}


def one(more, name="a"):
    return f'[[principals]]\nname = "{name}"\n{more}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("principals = 3", "principals: Input should be a valid tuple"),
        ("x = 1", "x: Extra inputs are not permitted"),
        ("[[principals]]", r"principals\[0\].name: Field required"),
        (one("colour = 1"), r"principals\[0\].colour: Extra inputs"),
        (one('token_sha256 = ["abc"]'), r"principals\[0\].token_sha256\[0\]: String should match"),
        (one('token_sha256 = "abc"'), r"token_sha256: Input should be a valid tuple"),
        (one("grants = [{ verbs = [], runs = ['*'] }]"), r"grants\[0\].verbs: .* at least 1"),
        (
            one("grants = [{ verbs = ['write'], runs = ['*'] }]"),
            r"grants\[0\].verbs\[0\]: Input should be 'draw'",
        ),
        (
            one("grants = [{ verbs = ['read'] }]"),
            "expected patterns of runs, of datasets, or of both; got neither",
        ),
        (one("grants = [{ verbs = ['read'], runs = ['[a]'] }]"), r"runs\[0\]: String should match"),
        (one("jwt = [{}]"), "expected a subject, claims, or both; got neither"),
        (one("quota = { calls_per_second = 0 }"), "greater than 0"),
        (one("quota = { bytes_per_second = 'much' }"), "could not parse value"),
        (one("") + one(""), "expected every name to be of one principal; 'a' is of several"),
        (
            one("local = true") + one("local = true", "b"),
            "expected every local socket to be of one principal",
        ),
        (one("certificates = ['x']") + one("certificates = ['x']", "b"), "every certificate to be of one"),
        ("[[", "not TOML"),
        ("a = '\xff'", None),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text, said):
    with pytest.raises(TableError, match=said):
        table(text)


def test_nobody_is_recognised_by_what_is_only_like_it():
    read = table(
        one(
            "certificates = ['a.b', 'spiffe://x/y']\ncommon_names = ['cn']\n"
            "jwt = [{ subject = 's', claims = { n = 1 } }]"
        )
    )
    for evidence in (
        Certificate(frozenset({"a.b.c", "A.B", "*.b", "spiffe://x/y/z"}), ""),
        Certificate(frozenset(), "a.b"),
        Certificate(frozenset({"cn"}), ""),
        Hashed("0" * 64),
        Local(),
        Proven({"sub": "s"}, 0.0),
        Proven({"sub": "s", "n": True}, 0.0),
        Proven({"sub": "s", "n": "1"}, 0.0),
        Proven({"sub": ["t"], "n": 1}, 0.0),
    ):
        assert read.recognise(evidence) is None
    assert read.recognise(Certificate(frozenset({"z", "a.b"}), "")) is not None
    assert read.recognise(Certificate(frozenset(), "cn")) is not None


def test_an_empty_file_lets_nobody_in():
    assert table("").recognise(Local()) is None


def test_the_first_that_fits_is_meant():
    read = table(one("jwt = [{ subject = 's' }]") + one("jwt = [{ claims = { t = 'v' } }]", "b"))
    found = read.recognise(Proven({"sub": "s", "t": "v"}, 0.0))
    assert found is not None
    assert found.principal == "a"
