"""Certificates and authorities change under a training, and connections grow old."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trustme

import steelyard
from tests.robustness.faults.crowd import Crowd
from tests.robustness.faults.registry import Bench, Broken, Round, fault
from tests.robustness.faults.scene import Load, Scene

AGE_SECONDS, GRACE_SECONDS = 2, 1
ROTATIONS = 3


class Papers:
    """Certificates of a server and its clients, and the authorities that each believes, as files that are replaced."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = trustme.CA()
        self._at = {
            name: folder / f"{name}.pem" for name in ("ca", "cert", "key", "clients", "mine", "my_key")
        }
        self.trust(self.authority)
        self.issue()

    @property
    def of_server(self) -> dict[str, Any]:
        """Settings."""
        return {"tls_cert": self._at["cert"], "tls_key": self._at["key"]}

    @property
    def believed(self) -> Path:
        """The file with the authorities of clients that the server believes."""
        return self._at["clients"]

    @property
    def ca(self) -> Path:
        """The file with the authorities of servers that the clients believe."""
        return self._at["ca"]

    @property
    def of_clients(self) -> steelyard.Credentials:
        return steelyard.Credentials(ca=self.ca, cert=self._at["mine"], key=self._at["my_key"])

    def trust(self, *authorities: trustme.CA) -> None:
        """Both sides believe these and no others."""
        bundle = b"".join(one.cert_pem.bytes() for one in authorities)
        for path in (self.ca, self.believed):
            replace(path, bundle)

    def issue(self) -> None:
        """New certificates for both, by the present authority."""
        for names, cert, key in ((("127.0.0.1",), "cert", "key"), (("trainer.example",), "mine", "my_key")):
            leaf = self.authority.issue_cert(*names)
            replace(self._at[key], leaf.private_key_pem.bytes())
            replace(self._at[cert], b"".join(pem.bytes() for pem in leaf.cert_chain_pems))


def replace(path: Path, data: bytes) -> None:
    """As those who rotate files do: never half written."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


class Secured(Scene):
    """Server, trainer and owner with certificates; connections grow old soon."""

    def __init__(self, bench: Bench, **settings: Any) -> None:
        self.papers = Papers(bench.folder / "papers")
        ages = {
            "max_connection_age_seconds": AGE_SECONDS,
            "max_connection_age_grace_seconds": GRACE_SECONDS,
        }
        clients = {"tls_client_ca": self.papers.believed}
        super().__init__(bench, **{**self.papers.of_server, **clients, **ages, **settings})

    def owner(self) -> steelyard.Credentials:
        return self.papers.of_clients

    def trained(self) -> Load:
        mine = self.papers.of_clients
        environment = {"STEELYARD_CA": mine.ca, "STEELYARD_CERT": mine.cert, "STEELYARD_KEY": mine.key}
        return Load(
            self.server.address,
            "r",
            self.bench.folder,
            {name: str(path) for name, path in environment.items()},
        )


@fault(
    "certificates and authorities rotated",
    how="both believe a new authority too, get certificates of it, and stop to believe the old one, "
    f"{ROTATIONS} times in a row; connections of {AGE_SECONDS} s",
    bar="no error for a client that retries, same batches, every loss counts once",
    rounds=20,
    suite=False,
)
def rotated(bench: Bench) -> Iterator[Round]:
    with Secured(bench) as scene:
        while True:
            rate = scene.load()
            for _ in range(ROTATIONS):
                _rotate(scene.papers)
            scene.await_batch()
            scene.settle()
            yield Round(rate, {"rotations": ROTATIONS})


def _rotate(papers: Papers) -> None:
    old, papers.authority = papers.authority, trustme.CA()
    changes: tuple[Callable[[], None], ...] = (
        lambda: papers.trust(old, papers.authority),
        papers.issue,
        lambda: papers.trust(papers.authority),
    )
    for change in changes:
        change()
        # Every connection is made anew in this time.
        time.sleep(1.1 * AGE_SECONDS + GRACE_SECONDS + 1)


@fault(
    "connections grow old",
    how="a connection is ended after 1 s, and cut 1 s later, with a training and 120 callers on it, for 15 s",
    bar="no error for a client that retries, same batches, every loss counts once",
    rounds=20,
    suite=False,
)
def old(bench: Bench) -> Iterator[Round]:
    with Scene(bench, max_connection_age_seconds=1, max_connection_age_grace_seconds=1) as scene:
        while True:
            rate = scene.load()
            with Crowd(scene.run.stats, 120) as crowd:
                time.sleep(3 if bench.short else 15)
            if crowd.errors:
                raise Broken(f"{len(crowd.errors)} of {len(crowd.seconds)} calls failed: {crowd.errors[0]!r}")
            scene.settle()
            yield Round(
                rate, {"calls beside it": len(crowd.seconds), "slowest of these, s": max(crowd.seconds)}
            )


@fault(
    "authority of the clients dropped",
    how="the server stops to believe the authority of a trainer that is connected; connections of "
    f"{AGE_SECONDS} s, {GRACE_SECONDS} s of grace",
    bar="the trainer is cut off within age (and a tenth) and grace; what it reported is kept",
    rounds=20,
    suite=False,
)
def dropped(bench: Bench) -> Iterator[Round]:
    number = 0
    while True:
        number += 1
        folder = bench.folder / str(number)
        with Secured(Bench(folder, bench.moments, bench.short)) as scene:
            rate = scene.load()
            replace(scene.papers.believed, trustme.CA().cert_pem.bytes())
            began = time.monotonic()
            limit = 1.1 * AGE_SECONDS + GRACE_SECONDS
            time.sleep(limit + 4)
            scene.trainer.new()
            last = scene.trainer.told[-1].at - began
            # The files are looked at again every second or so.
            if last > limit + 2:
                raise Broken(
                    f"expected the trainer to be cut off within {limit:g} s; a batch came after {last:.1f} s"
                )
            yield Round(rate, {"cut off after, s": last})
