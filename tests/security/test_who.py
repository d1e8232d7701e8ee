"""Who may do what at a real server: every call, for everyone who is somebody or nobody."""

import hashlib
import time
from typing import Any

import grpc
import numpy as np
import pytest

from steelyard import wire
from steelyard.v1 import arrays_pb2, datasets_pb2, events_pb2, runs_pb2, trainer_pb2
from steelyard_server.security import tokens

from .conftest import AUDIENCE, Files, refusal, replace, serving, spiffe, tls_channel

TOKENS = {name: f"token-of-{name}-" + "x" * 30 for name in ("owner", "trainer", "reader", "nobody", "root")}


def principal(name, more, *grants):
    parts = "".join(
        f"[[principals.grants]]\nverbs = {verbs}\nruns = {runs}\ndatasets = {datasets}\n"
        for verbs, runs, datasets in grants
    )
    return f'[[principals]]\nname = "{name}"\n{more}\n{parts}'


def hashed(name):
    return f'token_sha256 = ["{hashlib.sha256(TOKENS[name].encode()).hexdigest()}"]'


ALL = ["draw", "report", "read", "admin"]
ACCESS = "".join(
    (
        principal("owner", hashed("owner"), (ALL, ["a-*"], ["a-*"])),
        principal("trainer", hashed("trainer"), (["draw", "report", "read"], ["a-*"], ["a-*"])),
        principal("reader", hashed("reader"), (["read"], ["a-*", "b-*"], ["a-*"])),
        principal("nobody", hashed("nobody")),
        principal("root", hashed("root"), (ALL, ["*"], ["*"])),
        principal("by-uri", 'certificates = ["spiffe://cluster/ns/t/sa/gpt"]', (["read"], ["a-*"], [])),
        principal("by-name", 'certificates = ["trainer.internal"]', (["read"], ["a-*"], [])),
        principal("by-cn", 'common_names = ["old-trainer"]', (["read"], ["a-*"], [])),
        principal(
            "by-jwt", 'jwt = [{ subject = "trainer", claims = { team = "vision" } }]', (["read"], ["a-*"], [])
        ),
    )
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, issuer):
    """A server with an access file and client certificates of two authorities' making."""
    folder = tmp_path_factory.mktemp("who")
    files = Files(folder)
    (folder / "access.toml").write_text(ACCESS)
    (folder / "keys.pem").write_bytes(issuer.public_pem)
    settings = {
        **files.settings(),
        "access": folder / "access.toml",
        "jwt_keys": str(folder / "keys.pem"),
        "jwt_audience": AUDIENCE,
    }
    with serving(folder / "data", **settings) as server:
        with tls_channel(server, files.ca, token=TOKENS["root"]) as root:
            for name in ("a-d", "b-d"):
                root.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(name=name, size=40), timeout=30)
            for name in ("a-r", "b-r"):
                root.runs.CreateRun(_create(name, name[0] + "-d"), timeout=30)
        yield server, files


def _create(name, dataset):
    policy = runs_pb2.Policy()
    policy.draw.update({"method": "shuffle"})
    spec = runs_pb2.RunSpec(name=name, dataset=dataset, batch_size=4, policy=policy)
    return runs_pb2.CreateRunRequest(spec=spec, exist_ok=True)


IDS = wire.pack(np.arange(2, dtype=np.uint8))
FLOATS = wire.pack(np.ones(2, np.float32))


def on_run(name):
    """Each call on a run, with the verb it needs; none of them changes what the others need."""
    signals = [arrays_pb2.Signal(name="loss", values=FLOATS)]
    return {
        "GetRun": ("read", runs_pb2.GetRunRequest(name=name)),
        "GetStats": ("read", runs_pb2.GetStatsRequest(name=name)),
        "GetHistory": ("read", runs_pb2.GetHistoryRequest(name=name, ids=IDS)),
        "GetRetention": ("read", runs_pb2.GetRetentionRequest(name=name)),
        "GetColumn": ("read", runs_pb2.GetColumnRequest(name=name, column="c")),
        "GetBatch": ("read", runs_pb2.GetBatchRequest(name=name, step=0)),
        "Observe": ("report", runs_pb2.ObserveRequest(name=name, ids=IDS, signals=signals)),
        "CloseStep": ("report", runs_pb2.CloseStepRequest(name=name, step=0)),
        "CreateBookmark": ("report", runs_pb2.CreateBookmarkRequest(name=name, bookmark="m", step=0)),
        "DeleteBookmark": ("admin", runs_pb2.DeleteBookmarkRequest(name=name, bookmark="n")),
        "ChangePolicy": ("admin", runs_pb2.ChangePolicyRequest(name=name)),
        "Rewind": ("admin", runs_pb2.RewindRequest(name=name, step=0)),
        "DeleteRun": ("admin", runs_pb2.DeleteRunRequest(name=name)),
        "Fork": ("admin", runs_pb2.ForkRequest(name=name, new_name="a-f", step=99)),
    }


def on_dataset(name):
    return {
        "GetDataset": ("read", datasets_pb2.GetDatasetRequest(name=name)),
        "AppendExamples": ("admin", datasets_pb2.AppendExamplesRequest(name=name, count=1, expected_size=7)),
        "RetireIds": ("admin", datasets_pb2.RetireIdsRequest(name=name, ids=IDS)),
        "SetColumn": ("admin", datasets_pb2.SetColumnRequest(name=name, column="c", values=FLOATS, ids=IDS)),
        "DeleteDataset": ("admin", datasets_pb2.DeleteDatasetRequest(name=name)),
    }


def outcome(ask, request, **kwargs):
    """The status and text; ("", "") where it was answered."""
    try:
        answer = ask(request, timeout=30, **kwargs)
        if hasattr(answer, "__next__"):
            list(answer)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "", ""


def join(run):
    return iter(
        [trainer_pb2.TrainRequest(messages=[trainer_pb2.TrainerMessage(join=trainer_pb2.Join(run=run))])]
    )


def calls(stubs, run, dataset):
    """(name, ask, a maker of requests, verb) of every call that names a run or a dataset."""
    for name, (verb, request) in on_run(run).items():
        yield name, getattr(stubs.runs, name), request, verb
    yield "StreamEvents", stubs.events.StreamEvents, events_pb2.StreamEventsRequest(name=run), "read"
    yield "Train", stubs.trainers.Train, join(run), "draw"
    for name, (verb, request) in on_dataset(dataset).items():
        yield name, getattr(stubs.datasets, name), request, verb


@pytest.mark.parametrize("who", sorted(set(TOKENS) - {"root"}))
def test_what_is_not_ones_own_is_as_if_it_were_missing(place, who):
    server, files = place
    texts: list[list[tuple[str, str, str]]] = []
    with tls_channel(server, files.ca, token=TOKENS[who]) as stubs:
        for run, dataset in (
            (("c-r", "b-d"), ("c-s", "c-d")) if who == "reader" else (("b-r", "b-d"), ("c-r", "c-d"))
        ):
            texts.append([])
            for name, ask, request, _ in calls(stubs, run, dataset):
                code, text = outcome(ask, request)
                assert code == "NOT_FOUND", (who, name, code, text)
                texts[-1].append((name, code, text.replace(run, "RUN").replace(dataset, "DATASET")))
    there, missing = texts
    assert there == missing
    assert {text for _, _, text in there} == {"no run 'RUN'", "no dataset 'DATASET'"}


@pytest.mark.parametrize("who", ["owner", "trainer", "reader", "nobody"])
def test_every_call_on_ones_own_is_allowed_by_its_verb_alone(place, who):
    held = {"owner": ALL, "trainer": ALL[:3], "reader": ["read"], "nobody": []}[who]
    server, files = place
    with tls_channel(server, files.ca, token=TOKENS[who]) as stubs:
        # Where the call is allowed it must do no harm: what the handler answers of a name that is free tells as well.
        for name, ask, request, verb in calls(stubs, "a-free", "a-free"):
            code, text = outcome(ask, request)
            if not held or verb in held:
                assert (code, text) in [
                    ("NOT_FOUND", "no run 'a-free'"),
                    ("NOT_FOUND", "no dataset 'a-free'"),
                ], name
            else:
                assert code == "PERMISSION_DENIED", (name, code, text)
                assert f"expected {verb} to be granted" in text


def test_the_owner_does_all_that_an_owner_does(place):
    server, files = place
    with tls_channel(server, files.ca, token=TOKENS["owner"]) as stubs:
        stubs.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(name="a-x", size=8), timeout=30)
        stubs.runs.CreateRun(_create("a-y", "a-x"), timeout=30)
        fork = runs_pb2.ForkRequest(name="a-y", new_name="a-z", step=0)
        assert stubs.runs.Fork(fork, timeout=30).run.parent == "a-y"
        for name in ("a-z", "a-y"):
            stubs.runs.DeleteRun(runs_pb2.DeleteRunRequest(name=name), timeout=30)
        stubs.datasets.DeleteDataset(datasets_pb2.DeleteDatasetRequest(name="a-x"), timeout=30)


@pytest.mark.parametrize(
    ("who", "request_", "expected"),
    [
        ("owner", _create("b-new", "a-d"), ("PERMISSION_DENIED", "admin to be granted on run 'b-new'")),
        ("owner", _create("b-r", "a-d"), ("PERMISSION_DENIED", "admin to be granted on run 'b-r'")),
        ("owner", _create("a-new", "b-d"), ("NOT_FOUND", "no dataset 'b-d'")),
        ("owner", _create("a-new", "c-d"), ("NOT_FOUND", "no dataset 'c-d'")),
        ("trainer", _create("a-r", "a-d"), ("PERMISSION_DENIED", "admin to be granted on run 'a-r'")),
    ],
)
def test_a_run_is_created_by_who_may_on_what_they_may(place, who, request_, expected):
    server, files = place
    with tls_channel(server, files.ca, token=TOKENS[who]) as stubs:
        code, text = refusal(stubs.runs.CreateRun, request_)
        assert code == expected[0]
        assert expected[1] in text


@pytest.mark.parametrize(
    ("who", "runs", "datasets"),
    [
        ("owner", ["a-r"], ["a-d"]),
        ("reader", ["a-r", "b-r"], ["a-d"]),
        ("nobody", [], []),
        ("root", ["a-r", "b-r"], ["a-d", "b-d"]),
    ],
)
def test_lists_show_only_what_is_ones_own(place, who, runs, datasets):
    server, files = place
    with tls_channel(server, files.ca, token=TOKENS[who]) as stubs:
        listed = stubs.runs.ListRuns(runs_pb2.ListRunsRequest(), timeout=30).runs
        assert [run.spec.name for run in listed] == runs
        found = stubs.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest(), timeout=30).datasets
        assert [dataset.name for dataset in found] == datasets


NOT_KNOWN = ("UNAUTHENTICATED", "expected credentials that this server knows")


def test_without_credentials_or_with_bad_ones_no_call_is_answered_and_none_says_why(place, issuer, caplog):
    server, files = place
    bad = [
        None,
        "made-up-token",
        "a.b.c",
        issuer.token(exp=1, iat=0),
        issuer.token(aud="another"),
        issuer.token(team="vision", sub="another"),
        issuer.token(team="speech"),
    ]
    before = dict(server.guard.tally.auth_failures)
    for token in bad:
        with tls_channel(server, files.ca, token=token) as stubs:
            for _, ask, request, _ in calls(stubs, "a-r", "a-d"):
                assert outcome(ask, request) == NOT_KNOWN
            assert outcome(stubs.runs.ListRuns, runs_pb2.ListRunsRequest()) == NOT_KNOWN
    counted = {
        reason: count - before.get(reason, 0) for reason, count in server.guard.tally.auth_failures.items()
    }
    assert set(counted) >= {
        *("no_credentials", "principal_unknown", "token_malformed", "token_expired", "token_audience")
    }
    assert sum(counted.values()) == len(bad) * 22
    assert not any(token and token in caplog.text for token in bad[1:])


def test_a_jwt_is_a_principal_by_its_subject_and_claims(place, issuer):
    server, files = place
    for team in ("vision", ["speech", "vision"]):
        with tls_channel(server, files.ca, token=issuer.token(team=team)) as stubs:
            assert stubs.runs.GetRun(runs_pb2.GetRunRequest(name="a-r"), timeout=30).run.spec.name == "a-r"


@pytest.fixture(scope="module")
def with_certificates(place, tmp_path_factory):
    _, files = place
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "access.toml").write_text(ACCESS)
    settings = {**files.settings(clients=True), "access": folder / "access.toml"}
    with serving(folder / "data", **settings) as server:
        yield server, files


def test_a_certificate_is_a_principal_by_an_exact_name(with_certificates):
    server, files = with_certificates
    issue = files.ca.issue_cert
    known = [
        spiffe(files.ca, "spiffe://cluster/ns/t/sa/gpt"),
        issue("other.internal", "trainer.internal"),
        issue(common_name="old-trainer"),
    ]
    strangers = [
        spiffe(files.ca, "spiffe://cluster/ns/t/sa/gpt2"),
        issue("sub.trainer.internal"),
        issue("other.internal", common_name="trainer.internal"),
        # Signed for its name; what else it says of itself may be anything.
        issue("other.internal", common_name="old-trainer"),
        issue("old-trainer"),
    ]
    for leaf in known:
        with tls_channel(server, files.ca, leaf) as stubs:
            assert outcome(stubs.runs.GetRun, runs_pb2.GetRunRequest(name="a-r")) == (
                "NOT_FOUND",
                "no run 'a-r'",
            )
            assert (
                outcome(stubs.runs.DeleteRun, runs_pb2.DeleteRunRequest(name="a-r"))[0] == "PERMISSION_DENIED"
            )
    for leaf in strangers:
        with tls_channel(server, files.ca, leaf) as stubs:
            assert outcome(stubs.runs.GetRun, runs_pb2.GetRunRequest(name="a-r")) == NOT_KNOWN


def told(caplog, event):
    return [one.msg for one in caplog.records if isinstance(one.msg, dict) and one.msg["event"] == event]


def test_the_log_says_by_what_a_stranger_could_be_known(with_certificates, place, issuer, caplog):
    server, files = with_certificates
    asked = runs_pb2.GetRunRequest(name="a-r")
    caplog.set_level("INFO", "steelyard_server")
    # As many lines a second as one refusal has.
    time.sleep(1.1)
    leaf = files.ca.issue_cert(
        *(f"{number}.internal" for number in range(20)), common_name="cn\x1b[2J" + "x" * 40
    )
    with tls_channel(server, files.ca, leaf) as stubs:
        assert outcome(stubs.runs.GetRun, asked) == NOT_KNOWN
    [line] = told(caplog, "caller_refused")
    assert len(line["names"]) == 8
    assert "0.internal" in line["names"]
    assert line["common_name"] == "cn\\x1b[2J" + "x" * 40
    caplog.clear()
    server, files = place
    token = issuer.token(team="vision", sub="new\n" + "x" * 500)
    with tls_channel(server, files.ca, token=token) as stubs:
        assert outcome(stubs.runs.GetRun, asked) == NOT_KNOWN
    [line] = told(caplog, "caller_refused")
    assert line["subject"] == "new\\n" + "x" * 124
    assert token not in caplog.text


def test_the_log_says_what_somebody_asked_for_who_may_not(place, caplog, eventually):
    server, files = place
    caplog.set_level("INFO", "steelyard_server")
    with tls_channel(server, files.ca, token=TOKENS["reader"]) as stubs:
        assert outcome(stubs.runs.DeleteRun, runs_pb2.DeleteRunRequest(name="a-r"))[0] == "PERMISSION_DENIED"
        fork = runs_pb2.ForkRequest(name="a-r", new_name="a-\x1b" + "x" * 200)
        assert outcome(stubs.runs.Fork, fork)[0] == "PERMISSION_DENIED"
        assert (
            outcome(stubs.runs.DeleteRun, runs_pb2.DeleteRunRequest(name="c\n" + "x" * 500))[0] == "NOT_FOUND"
        )
        assert outcome(stubs.trainers.Train, join("a-r"))[0] == "PERMISSION_DENIED"
    # Each is told of when its answer has gone.
    assert eventually(lambda: len(told(caplog, "call")) == 4)
    lines = told(caplog, "call")
    assert sorted(line["run"] for line in lines) == ["a-r", "a-r", "a-r", "c\\n" + "x" * 126]
    assert {line["principal"] for line in lines} == {"reader"}


def test_a_token_decides_where_there_is_a_certificate_too(with_certificates):
    server, files = with_certificates
    leaf = files.ca.issue_cert("trainer.internal")
    asked = runs_pb2.DeleteRunRequest(name="a-r")
    with tls_channel(server, files.ca, leaf, token=TOKENS["owner"]) as stubs:
        assert outcome(stubs.runs.DeleteRun, asked) == ("NOT_FOUND", "no run 'a-r'")
    with tls_channel(server, files.ca, leaf, token="unknown") as stubs:
        assert outcome(stubs.runs.DeleteRun, asked) == NOT_KNOWN


HEALTH = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CHANNELZ = "/grpc.channelz.v1.Channelz/GetServers"


def inside(channel):
    """What the calls that look inside the server answer."""
    list_services = b"\x3a\x01*"
    return (
        outcome(channel.unary_unary(CHANNELZ), b"")[0],
        outcome(channel.stream_stream(REFLECT), iter([list_services]))[0],
    )


def test_reflection_and_channelz_are_for_admins_of_everything_and_health_for_all(place):
    server, files = place
    for who, expected in (("root", ""), ("owner", "PERMISSION_DENIED"), ("nobody", "PERMISSION_DENIED")):
        with tls_channel(server, files.ca, token=TOKENS[who]) as stubs:
            assert inside(stubs.channel) == (expected, expected)
    with tls_channel(server, files.ca) as stubs:
        assert inside(stubs.channel) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        assert outcome(stubs.channel.unary_unary(HEALTH), b"") == ("", "")
        assert outcome(stubs.channel.unary_unary("/steelyard.v1.RunService/Nope"), b"")[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("call", ["Backup", "ListBackups", "Check"])
def test_the_operators_calls_are_for_admins_of_everything(place, call):
    server, files = place
    for who in ("owner", "reader", "nobody"):
        with tls_channel(server, files.ca, token=TOKENS[who]) as stubs:
            code, text = outcome(
                stubs.channel.stream_stream(f"/steelyard.v1.AdminService/{call}"), iter([b""])
            )
            assert (code, "on all runs and datasets" in text) == ("PERMISSION_DENIED", True)
    with tls_channel(server, files.ca, token=TOKENS["root"]) as stubs:
        code, _ = outcome(stubs.channel.stream_stream(f"/steelyard.v1.AdminService/{call}"), iter([b""]))
        # This server has no place for backups.
        assert code == ("" if call == "Check" else "FAILED_PRECONDITION")


def test_over_a_unix_socket_the_peer_is_local_or_who_its_token_says(tmp_path):
    access = tmp_path / "access.toml"
    access.write_text(
        principal("here", "local = true", (["read"], ["*"], ["*"]))
        + principal("owner", hashed("owner"), (ALL, ["*"], ["*"]))
    )
    tmp_path.chmod(0o700)
    with (
        serving(tmp_path / "data", listen=f"unix:{tmp_path}/s", access=access) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        make: Any = channel.unary_unary("/steelyard.v1.DatasetService/CreateDataset")
        asked = datasets_pb2.CreateDatasetRequest(name="d", size=3).SerializeToString()
        code, text = outcome(make, asked)
        assert (code, "expected admin" in text) == ("PERMISSION_DENIED", True)
        assert outcome(make, asked, metadata=(("authorization", f"Bearer {TOKENS['owner']}"),)) == (
            "",
            "",
        )
        assert outcome(make, asked, metadata=(("authorization", "Bearer no"),)) == NOT_KNOWN


def test_without_an_access_file_loopback_is_open_as_ever(tmp_path):
    with serving(tmp_path / "data") as server, grpc.insecure_channel(server.address) as channel:
        make: Any = channel.unary_unary("/steelyard.v1.DatasetService/CreateDataset")
        assert outcome(make, datasets_pb2.CreateDatasetRequest(name="d", size=3).SerializeToString()) == (
            "",
            "",
        )
        assert inside(channel) == ("", "")


def test_a_new_access_file_counts_and_a_bad_one_does_not(place, tmp_path, eventually):
    _, files = place
    access = tmp_path / "access.toml"
    access.write_text(principal("p", hashed("owner"), (["read"], ["*"], ["*"])))
    asked = runs_pb2.DeleteRunRequest(name="r")
    with (
        serving(tmp_path / "data", **files.settings(), access=access) as server,
        tls_channel(server, files.ca, token=TOKENS["owner"]) as stubs,
    ):
        assert outcome(stubs.runs.DeleteRun, asked)[0] == "PERMISSION_DENIED"
        replace(access, b"[[principals]]\nname = 3\n")
        replace(access, principal("p", hashed("owner"), (["admin"], ["*"], ["*"])).encode())
        eventually(lambda: outcome(stubs.runs.DeleteRun, asked) == ("NOT_FOUND", "no run 'r'"))
        replace(access, b"[[principals]]\nname = 3\n")
        for _ in range(3):
            assert outcome(stubs.runs.DeleteRun, asked)[0] == "NOT_FOUND"


def test_the_hash_that_is_printed_with_a_token_is_the_one_that_counts():
    token, digest = tokens.made()
    assert hashlib.sha256(token.encode()).hexdigest() == digest
