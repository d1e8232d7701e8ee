"""Datasets through the client, against a real server."""

import numpy as np
import pytest

import steelyard
import steelyard.client
from steelyard.testing import server


@pytest.fixture
def client(tmp_path):
    with server(tmp_path) as client:
        yield client


def test_a_dataset_is_created_read_listed_and_deleted(client):
    made = client.create_dataset("b", 100, fingerprint="v1")
    client.create_dataset("a", 5)
    assert made == client.dataset("b") == steelyard.DatasetInfo("b", 100, 0, "v1", ())
    assert [one.name for one in client.list_datasets()] == ["a", "b"]
    client.delete_dataset("a")
    with pytest.raises(steelyard.NotFound, match="'a'"):
        client.dataset("a")


def test_creating_again_is_refused_unless_it_may_exist_and_agrees(client):
    client.create_dataset("d", 100, fingerprint="v1")
    with pytest.raises(steelyard.AlreadyExists):
        client.create_dataset("d", 100, fingerprint="v1")
    assert client.create_dataset("d", 100, fingerprint="v1", exist_ok=True).size == 100
    with pytest.raises(steelyard.AlreadyExists):
        client.create_dataset("d", 101, fingerprint="v1", exist_ok=True)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, 2**31])
def test_a_size_out_of_range_is_refused(client, size):
    with pytest.raises(steelyard.InvalidArgument, match="size"):
        client.create_dataset("d", size)
    assert client.list_datasets() == []


def test_examples_are_appended_once_however_often_the_call_is_made(client):
    client.create_dataset("d", 100)
    assert client.append_examples("d", 20).size == 120
    assert client.append_examples("d", 5, expected_size=120).size == 125
    assert client.append_examples("d", 5, expected_size=120).size == 125
    with pytest.raises(steelyard.FailedPrecondition):
        client.append_examples("d", 5, expected_size=100)


def test_of_two_who_append_to_one_size_the_second_appends_nothing(client):
    client.create_dataset("d", 100)
    assert client.append_examples("d", 20, expected_size=100).size == 120
    assert client.append_examples("d", 20, expected_size=100).size == 120
    with pytest.raises(steelyard.FailedPrecondition, match="120 examples; expected_size was 100"):
        client.append_examples("d", 30, expected_size=100)
    assert client.dataset("d").size == 120


def test_retired_ids_are_counted_and_no_longer_drawn(client):
    client.create_dataset("d", 10)
    assert client.retire("d", [3, 4]).retired == 2
    run = client.create_run("r", dataset="d", batch_size=8)
    with run.join() as session:
        assert set(session.next().ids.tolist()) == {0, 1, 2, 5, 6, 7, 8, 9}
    with pytest.raises(steelyard.InvalidArgument, match="10"):
        client.retire("d", [1, 10])
    assert client.dataset("d").retired == 2


def test_a_column_set_in_parts_equals_one_set_at_once(client, monkeypatch):
    monkeypatch.setattr(steelyard.client, "_CHUNK", 1000)
    client.create_dataset("d", 4500)
    values = np.arange(4500, dtype=np.float32)
    assert client.set_column("d", "quality", values[:2500]).columns == ("quality",)
    client.set_column("d", "quality", values[2500:], start=2500)
    ids = np.array([4499, 0, 7])
    client.set_column("d", "quality", [5001.0, 5002.0, 5003.0], ids=ids)
    values[ids] = [5001, 5002, 5003]
    run = client.create_run("r", dataset="d", batch_size=8, draw={"method": "scored", "score": "quality"})
    np.testing.assert_array_equal(run.column("quality"), values)
    np.testing.assert_array_equal(run.column("quality", ids), values[ids])


@pytest.mark.parametrize(
    ("ids", "values", "message"),
    [
        ([1, 2], [0.0], "one value for each id, got 1 values for 2 ids"),
        ([1, 10], [0.0, 0.0], "10"),
        ([1, 1], [0.0, 0.0], "twice"),
        ([1], [float("inf")], "inf"),
        (None, [0.0] * 11, "10|11"),
    ],
)
def test_a_column_that_does_not_fit_is_refused_and_changes_nothing(client, ids, values, message):
    client.create_dataset("d", 10)
    with pytest.raises(steelyard.InvalidArgument, match=message):
        client.set_column("d", "quality", values, ids=ids)
    assert client.dataset("d").columns == ()
