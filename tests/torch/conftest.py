"""A server in a process of its own, as trainers have it: loaders fork workers from a process that only trains."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.utils.data import Dataset

import steelyard
from steelyard.testing import ServerProcess

IGNORED = (
    # What Python says from 3.12 on about every fork of a process with threads. A loader's workers use none of ours.
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    # The number of workers is the point of a test, not the machine's speed.
    "ignore:This DataLoader will create:UserWarning",
)

_NAMES = itertools.count()


class Ids(Dataset[int]):
    """Examples that are their own ids."""

    def __getitem__(self, at: int) -> int:
        return at


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/torch/" in item.path.as_posix():
            item.add_marker(pytest.mark.filterwarnings(*IGNORED))


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[steelyard.Client]:
    with ServerProcess(tmp_path_factory.mktemp("server")) as process, process.client() as client:
        yield client


@pytest.fixture
def make_run(client: steelyard.Client) -> Callable[..., steelyard.Run]:
    """A new run on a new dataset of `size` examples; further arguments are those of create_run."""

    def make(size: int = 24, **options: Any) -> steelyard.Run:
        name = f"r{next(_NAMES)}"
        client.create_dataset(name, size=size)
        return client.create_run(name, dataset=name, **{"batch_size": 4, **options})

    return make


@pytest.fixture
def scored() -> dict[str, Any]:
    """A draw that reads reports."""
    return {"method": "scored", "score": "last_loss", "floor": 0.1}


@pytest.fixture
def examples() -> Ids:
    return Ids()
