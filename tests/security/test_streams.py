"""Streams are allowed when they begin, and only for as long as that holds."""

import hashlib
import queue
import threading
import time
from typing import Any

import pytest

from steelyard.v1 import datasets_pb2, runs_pb2, trainer_pb2

from .conftest import AUDIENCE, refusal, replace, serving, tls_channel

TOKEN = "token-of-the-trainer-" + "x" * 30
ROOT = "token-of-root-" + "x" * 30


def table(verbs='["draw", "report"]', runs='["r"]', name="trainer"):
    def digest(token):
        return hashlib.sha256(token.encode()).hexdigest()

    return f"""
[[principals]]
name = "root"
token_sha256 = ["{digest(ROOT)}"]
grants = [{{ verbs = ["draw", "report", "read", "admin"], runs = ["*"], datasets = ["*"] }}]

[[principals]]
name = "{name}"
token_sha256 = ["{digest(TOKEN)}"]
jwt = [{{ subject = "trainer" }}]
grants = [{{ verbs = {verbs}, runs = {runs} }}]
""".encode()


class Trainer:
    """One stream, spoken by hand."""

    def __init__(self, stubs):
        self._sent: queue.Queue[Any] = queue.Queue()
        self.batches = 0
        self.answers = stubs.trainers.Train(iter(self._sent.get, None), timeout=60)

    def send(self, **message):
        self._sent.put(trainer_pb2.TrainRequest(messages=[trainer_pb2.TrainerMessage(**message)]))

    def join(self, run="r", credit=2):
        self.send(
            join=trainer_pb2.Join(
                run=run, world_size=1, attempt="a", session=f"s{time.monotonic()}", credit=credit
            )
        )
        return self

    def next(self):
        messages = next(self.answers).messages
        self.batches += sum(one.WhichOneof("message") == "batch" for one in messages)
        return messages

    def await_batches(self, count):
        """Until so many have come; several may travel together."""
        while self.batches < count:
            self.next()

    def end(self):
        self._sent.put(None)

    def ended(self):
        """The status and text that the stream ends with."""
        return refusal(lambda timeout: self.answers)


@pytest.fixture(scope="module")
def place(tmp_path_factory, issuer):
    from .conftest import Files

    folder = tmp_path_factory.mktemp("streams")
    files = Files(folder)
    access = folder / "access.toml"
    access.write_bytes(table())
    (folder / "keys.pem").write_bytes(issuer.public_pem)
    settings = {
        **files.settings(),
        "access": access,
        "jwt_keys": str(folder / "keys.pem"),
        "jwt_audience": AUDIENCE,
        "jwt_leeway_seconds": 0,
        "max_draws_per_call": 64,
    }
    with serving(folder / "data", **settings) as server:
        with tls_channel(server, files.ca, token=ROOT) as root:
            root.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(name="d", size=100), timeout=30)
            for name in ("r", "other"):
                policy = runs_pb2.Policy()
                policy.draw.update({"method": "shuffle"})
                spec = runs_pb2.RunSpec(name=name, dataset="d", batch_size=16, policy=policy)
                root.runs.CreateRun(runs_pb2.CreateRunRequest(spec=spec), timeout=30)
        yield server, files, access


def use(server, access, data, eventually):
    """Puts another access file in force."""
    replace(access, data)
    watched = server.guard._gatekeeper._table
    eventually(lambda: watched.current() and watched._contents == [data])


@pytest.fixture
def joined(place, eventually):
    server, files, access = place
    use(server, access, table(), eventually)
    with tls_channel(server, files.ca, token=TOKEN) as stubs:
        trainer = Trainer(stubs).join()
        assert trainer.next()[0].WhichOneof("message") == "joined"
        yield trainer, access
        trainer.end()


def test_a_stream_needs_both_verbs_when_it_joins(place, eventually):
    server, files, access = place
    with tls_channel(server, files.ca, token=TOKEN) as stubs:
        use(server, access, table('["draw"]'), eventually)
        code, text = Trainer(stubs).join().ended()
        assert (code, "expected report to be granted on run 'r'" in text) == ("PERMISSION_DENIED", True)
        use(server, access, table('["report"]'), eventually)
        assert Trainer(stubs).join().ended()[0] == "PERMISSION_DENIED"
        use(server, access, table(), eventually)
        missing = Trainer(stubs).join("missing").ended()
        assert missing == ("NOT_FOUND", "no run 'missing'")
        assert Trainer(stubs).join("other").ended() == ("NOT_FOUND", "no run 'other'")


@pytest.mark.parametrize(
    ("taken", "status"),
    [
        (table('["draw", "read"]'), ("PERMISSION_DENIED", "expected report to be granted on run 'r'")),
        (table(runs='["s"]'), ("NOT_FOUND", "no run 'r'")),
        (
            table().replace(hashlib.sha256(TOKEN.encode()).hexdigest().encode(), b"0" * 64),
            ("UNAUTHENTICATED", "expected"),
        ),
    ],
    ids=["a verb", "the run", "the token"],
)
def test_a_stream_ends_when_what_allowed_it_is_taken_away(joined, taken, status):
    trainer, access = joined
    replace(access, taken)
    code, text = trainer.ended()
    assert code == status[0]
    assert text.startswith(status[1])


def test_a_stream_goes_on_where_a_change_leaves_it_allowed(joined):
    trainer, access = joined
    trainer.await_batches(2)
    replace(access, table('["draw", "report", "read"]', name="renamed"))
    time.sleep(2.5)
    trainer.send(credit=trainer_pb2.Credit(batches=1))
    trainer.await_batches(3)


def test_a_stream_ends_when_its_token_expires(place, issuer, eventually):
    server, files, access = place
    use(server, access, table(), eventually)
    end = int(time.time()) + 3
    with tls_channel(server, files.ca, token=issuer.token(exp=end)) as stubs:
        trainer = Trainer(stubs).join()
        assert trainer.next()[0].WhichOneof("message") == "joined"
        code, text = trainer.ended()
        assert (code, "expired" in text) == ("UNAUTHENTICATED", True)
        assert end <= time.time() < end + 20
        code, _ = refusal(stubs.runs.GetRun, runs_pb2.GetRunRequest(name="r"))
        assert code == "UNAUTHENTICATED"
    with tls_channel(server, files.ca, token=issuer.token()) as stubs:
        trainer = Trainer(stubs).join()
        assert trainer.next()[0].WhichOneof("message") == "joined"
        trainer.end()


@pytest.mark.parametrize("at_join", [True, False])
def test_more_draws_than_the_limit_are_not_promised_and_one_batch_always_is(place, at_join):
    server, files, _ = place
    with tls_channel(server, files.ca, token=ROOT) as stubs:
        trainer = Trainer(stubs).join("other", credit=5 if at_join else 4)
        if not at_join:
            trainer.send(credit=trainer_pb2.Credit(batches=5))
        code, text = trainer.ended()
        assert code == "RESOURCE_EXHAUSTED"
        assert "expected credit for at most 64 examples at a time (max_draws_per_call)" in text


def test_streams_that_end_leave_nothing_behind(place, eventually):
    server, _, _ = place
    eventually(lambda: not server.guard._open and not server.guard._streams.inside)
    assert not [thread for thread in threading.enumerate() if "Dummy" in thread.name and not thread.daemon]
