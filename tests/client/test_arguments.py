"""Arguments are checked before anything is sent."""

import numpy as np
import pytest

from steelyard.arguments import float_array, id_array, pack_ids, whole
from steelyard.channel import check_address
from steelyard.errors import InvalidArgument
from steelyard.options import SessionOptions, default_prefetch


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_any_library_are_integers(value):
    assert whole("n", value) == 3


@pytest.mark.parametrize("value", [True, 3.0, "3", None, -1, 8])
def test_what_is_no_integer_of_the_range_is_named(value):
    with pytest.raises(InvalidArgument, match="n: expected an integer from 0 to 7, got"):
        whole("n", value, below=8)


def test_ids_are_taken_from_lists_and_arrays():
    assert id_array([3, 1]).tolist() == [3, 1]
    assert id_array(np.array([3], np.uint16)).dtype == np.int64
    assert id_array([]).tolist() == []
    assert pack_ids(id_array([])).count == 0


@pytest.mark.parametrize("ids", [[0.5], [[1]], [-1], 3, ["a"], np.array([2**63], np.uint64)])
def test_what_are_no_ids_is_refused(ids):
    with pytest.raises(InvalidArgument, match="ids: expected"):
        id_array(ids)


def test_losses_are_taken_from_lists_arrays_and_tensors():
    torch = pytest.importorskip("torch")
    for losses in (
        [1, 2.5],
        (1, 2.5),
        np.array([1, 2.5], np.float16),
        torch.tensor([1, 2.5], requires_grad=True),
        torch.tensor([1, 2.5], dtype=torch.bfloat16),
    ):
        values = float_array("losses", losses)
        assert values.dtype == np.float32
        assert values.tolist() == [1, 2.5]


def test_a_loss_beyond_float32_is_infinite():
    assert float_array("losses", [1e300]).tolist() == [float("inf")]


@pytest.mark.parametrize("losses", [3.0, [[1.0]], ["a"], [None], object()])
def test_what_are_no_losses_is_refused(losses):
    with pytest.raises(InvalidArgument, match="losses: expected numbers in one dimension"):
        float_array("losses", losses)


@pytest.mark.parametrize("address", ["localhost:7077", "[::1]:80", "unix:/run/steelyard.sock", "a.b.c:65535"])
def test_addresses_are_host_and_port_or_a_socket(address):
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address", ["", "localhost", ":80", "host:", "host:0", "host:65536", "unix:", "host:http", 7077]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(InvalidArgument, match="address: expected HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 2},
        {"rank": -1},
        {"world_size": 0},
        {"prefetch": 0},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"reconnect_timeout": -1.0},
        {"start_step": -1},
        {"replica": -1},
    ],
)
def test_a_session_with_a_wrong_option_is_refused_by_its_name(wrong):
    options = SessionOptions(address="a:1", run="r", **{"world_size": 2, "attempt": "t", **wrong})
    with pytest.raises(InvalidArgument, match=f"{next(iter(wrong))}: expected"):
        options.checked()


def test_the_prefetch_follows_the_staleness_within_reason():
    assert [default_prefetch(one) for one in (0, 1, 8, 16, 1000, "any")] == [1, 1, 8, 16, 16, 16]
