"""The seed paper's numbers, from its authors' code, as a server weighs for one rank and for two."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from steelyard.testing import server

GOLDENS = json.loads((Path(__file__).parents[1] / "golden" / "goldens.json").read_text(encoding="utf-8"))
METHODS = {
    "linupper": "linupper",
    "quadratic(mid)": "quadratic",
    "extremes": "extremes",
    "upper(repo only)": "upper",
}
LOSSES = np.array([0.5, 1.0, 2.0, 4.0])
SIX_DIGITS = 1e-6


def rules():
    for name in GOLDENS:
        parts = name.split("/")
        if parts[0] == "seed" and len(parts) == 3 and parts[1] in METHODS and parts[2].startswith("r="):
            yield name, {"method": METHODS[parts[1]], "r": float(parts[2][2:]), "where": "server"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with server(tmp_path_factory.mktemp("goldens")) as client:
        client.create_dataset("d", 100)
        yield client


def weights_of(run, rank, world_size):
    with run.join(rank=rank, world_size=world_size, attempt=f"of {world_size}", timeout=60) as session:
        batch = session.next()
        cut = slice(batch.offset, batch.offset + len(batch))
        return session.report(batch, LOSSES[cut])


@pytest.mark.parametrize(
    ("name", "rule"), list(rules()), ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_server_weighs_as_the_authors_do(client, name, rule, world_size):
    run = client.create_run(
        f"{METHODS[name.split('/')[1]]}-{rule['r']}-{world_size}", dataset="d", batch_size=4, weigh=rule
    )
    with ThreadPoolExecutor(world_size) as pool:
        parts = list(pool.map(lambda rank: weights_of(run, rank, world_size), range(world_size)))
    np.testing.assert_allclose(np.concatenate(parts), GOLDENS[name]["w_sumB"], rtol=0, atol=SIX_DIGITS)


def test_every_rule_of_the_paper_has_its_numbers():
    assert {rule["method"] for _, rule in rules()} == set(METHODS.values())
    assert len(list(rules())) == 8
