"""What the callers' threads wait for, and what wakes them: a session's membership without a connection."""

import threading

import numpy as np

from steelyard import wire
from steelyard.ledger import Answer, Owed
from steelyard.membership import Membership
from steelyard.options import SessionOptions
from steelyard.v1 import trainer_pb2

COUNT = 4
SECONDS = 10.0


def owed(step):
    message = trainer_pb2.TrainerMessage(report=trainer_pb2.Report(step=step))
    return Owed(message, step, 0, COUNT, 100, (0, COUNT), Answer(step, COUNT))


def of_step(kind, step, **fields):
    return trainer_pb2.RunMessage(**{kind: kind_of[kind](step=step, **fields)})


kind_of = {
    "batch": trainer_pb2.Batch,
    "acknowledgement": trainer_pb2.Acknowledgement,
    "weights": trainer_pb2.Weights,
}


def joined_member(steps):
    """One of rank 0 of 1 that has handed out steps 0..steps-1; and what it sends."""
    sent: list[object] = []
    member = Membership(SessionOptions("a:1", "r", reports=True, prefetch=steps), "s", sent.append)
    member.joining()
    joined = trainer_pb2.Joined()
    joined.spec.policy.weigh.update({"method": "uniform"})
    joined.spec.staleness.any = True
    member.received(trainer_pb2.RunMessage(joined=joined))
    ids = np.arange(COUNT)
    for step in range(steps):
        digest = wire.batch_digest(step, ids)
        member.received(
            of_step("batch", step, batch_size=COUNT, ids=wire.pack_ids(ids, COUNT), digest=digest)
        )
        member.next_batch(SECONDS)
    return member, sent


def test_a_report_that_waits_for_room_is_sent_when_the_weights_of_an_acknowledged_one_come():
    member, sent = joined_member(2)
    member.ledger.max_reports = 1
    first, second = owed(0), owed(1)
    member.submit(first, SECONDS)
    waits = threading.Thread(target=member.submit, args=(second, 2 * SECONDS), daemon=True)
    waits.start()
    member.received(of_step("acknowledgement", 0, count=COUNT))
    # It has seen that an acknowledgement alone makes no room, and waits again.
    waits.join(0.2)
    assert second.request not in sent
    member.received(of_step("weights", 0, weights=wire.pack(np.ones(COUNT, np.float32))))
    waits.join(SECONDS)
    assert not waits.is_alive()
    assert sent[-1] is second.request
