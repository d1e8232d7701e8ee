"""A batch travels between processes and prints on one line."""

import dataclasses
import pickle

import numpy as np
import pytest

from steelyard.batch import Batch

BATCH = Batch(
    step=3,
    ids=np.arange(1000, dtype=np.int64),
    probability=np.full(1000, 0.001),
    weight=np.ones(1000, dtype=np.float32),
    state_version=2,
    offset=1000,
    batch_size=2000,
    digest=0xABC,
    rank=1,
    world_size=2,
)


def test_a_batch_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(BATCH))
    for field in dataclasses.fields(Batch):
        before, after = getattr(BATCH, field.name), getattr(copy, field.name)
        np.testing.assert_array_equal(before, after)
        assert type(before) is type(after)
    assert len(copy) == 1000


def test_a_batch_prints_on_one_line() -> None:
    assert repr(BATCH) == (
        "Batch(step=3, ids=<1000 from 1000 of 2000>, rank=1 of 2, state_version=2, digest=0000000000000abc)"
    )


def test_a_batch_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BATCH.step = 4  # type: ignore[misc]
