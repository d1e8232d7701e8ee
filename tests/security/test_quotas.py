"""Buckets: what is let through in any stretch of time is bounded, and nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard_server.security.quotas import Account, Accounts, Bucket, Quota

steps = st.lists(st.tuples(st.floats(0, 3), st.floats(0.01, 50)), max_size=40)


@given(st.floats(0.1, 100), steps)
def test_no_more_passes_than_the_rate_and_one_second_of_it(rate, moves):
    bucket, now = Bucket(rate, 0.0), 0.0
    passed, last = 0.0, 0.0
    for pause, amount in moves:
        now += pause
        if bucket.wait(now) == 0:
            bucket.spend(amount)
            passed, last = passed + amount, amount
    # The last message may be as large as it is: it is waited for by the next.
    assert passed - last <= bucket.capacity + rate * now + 1e-6


@given(st.floats(0.1, 100), steps)
def test_after_the_wait_that_it_names_a_bucket_lets_through(rate, moves):
    bucket, now = Bucket(rate, 0.0), 0.0
    for pause, amount in moves:
        now += pause
        wait = bucket.wait(now, min(amount, bucket.capacity))
        now += wait
        assert bucket.wait(now, min(amount, bucket.capacity)) <= 1e-6
        bucket.spend(amount)


def test_a_refused_call_costs_nothing():
    account = Account(Quota(calls_per_second=2.0), 0.0)
    assert [account.begin_call(0.0) for _ in range(2)] == [None, None]
    assert [account.begin_call(0.0) for _ in range(50)] == [("calls", 0.5)] * 50
    assert account.begin_call(0.5) is None


def test_less_than_one_call_a_second_still_lets_the_first_through():
    account = Account(Quota(calls_per_second=0.1), 0.0)
    assert account.begin_call(0.0) is None
    assert account.begin_call(1.0) == ("calls", pytest.approx(9.0))


def test_a_message_larger_than_the_bucket_passes_and_is_waited_for():
    account = Account(Quota(bytes_per_second=100.0), 0.0)
    assert account.begin_call(0.0) is None
    account.spend_bytes(1100)
    assert account.begin_call(0.0) == ("bytes", pytest.approx(10.0))
    assert account.wait_for_bytes(4.0) == pytest.approx(6.0)
    assert account.wait_for_bytes(10.0) == 0


def test_an_account_is_kept_while_its_quota_is_the_same():
    accounts, quota = Accounts(), Quota(calls_per_second=1.0)
    assert accounts.of("a", quota, 0.0) is accounts.of("a", quota, 5.0)
    assert accounts.of("a", quota, 0.0) is not accounts.of("b", quota, 0.0)
    assert accounts.of("a", Quota(calls_per_second=2.0), 0.0).begin_call(0.0) is None
