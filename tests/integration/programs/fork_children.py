"""Forks while a session streams: ADDRESS, COUNT. Children exit in every way that a child may."""

import gc
import multiprocessing
import os
import sys
import threading
import time

import numpy as np

import steelyard


def refused(call, kind):
    """What the refusal of a call says."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"expected {kind.__name__}, and the call was made")


def child(session, run, batch):
    """What a child may try: each is refused at once."""
    began = time.monotonic()
    for call in (
        session.next,
        lambda: session.report(batch, np.ones(16)),
        session.flush,
        session.leave,
        session.close,
    ):
        assert "belongs to process" in refused(call, steelyard.ForkedSession)
    for call in (run.info, lambda: run.join(timeout=1), run.client.list_runs):
        assert "spawn" in refused(call, steelyard.FailedPrecondition)
    assert time.monotonic() - began < 5


def main(address, count):
    run = steelyard.connect(address).run("r").fork("forked-from", step=0)
    session = run.join()
    stop = threading.Event()
    handed = [session.next()]

    def stream():
        while not stop.is_set():
            handed[0] = session.next(timeout=20)
            session.report(handed[0], np.ones(16))

    trainer = threading.Thread(target=stream)
    trainer.start()
    statuses = []
    for at in range(int(count)):
        if at % 2:
            process = multiprocessing.get_context("fork").Process(
                target=child, args=(session, run, handed[0])
            )
            process.start()
            process.join(20)
            statuses.append(process.exitcode)
            continue
        pid = os.fork()
        if pid == 0:
            child(session, run, handed[0])
            if at % 4:
                del session, run, trainer
                gc.collect()
            sys.stdout.close()
            sys.exit(0)  # through the interpreter's whole teardown
        statuses.append(wait(pid, 20))
    stop.set()
    trainer.join()
    print(*statuses)
    session.next(timeout=20)
    session.leave()
    assert run.stats().connected_ranks == 0
    print("parent goes on")


def wait(pid, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"


if __name__ == "__main__":
    main(*sys.argv[1:])
