"""Exits with a session open: ADDRESS, HOW."""

import sys
import threading
import time

import steelyard


def break_connection(session):
    call = session._stream._call
    assert call is not None
    call.cancel()


def main(address, how):
    run = (
        steelyard.connect(address)
        .run("r")
        .fork("exits-" + how.replace(" ", "-"), step=0, weigh={"method": "upper"})
    )
    session = run.join(0, 2, attempt="t")
    batch = session.next()
    print("exits", flush=True)
    if how == "in next":
        # The other thread waits in the session while the interpreter goes.
        threading.Thread(target=lambda: [session.next() for _ in range(1000)], daemon=True).start()
        time.sleep(0.3)
    elif how == "in flush":
        pending = session.report_async(batch, [1.0] * 8)
        threading.Thread(target=pending.result, daemon=True).start()
        time.sleep(0.3)
    elif how == "unhandled error":
        sys.excepthook = lambda *_: sys.exit(0)
        raise RuntimeError("a trainer's bug")
    elif how == "while reconnecting":
        session._stream._address = "127.0.0.1:1"
        break_connection(session)
        time.sleep(0.3)


if __name__ == "__main__":
    main(*sys.argv[1:])
