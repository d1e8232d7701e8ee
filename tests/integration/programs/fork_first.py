"""Forks before gRPC is used, with a handle made already: ADDRESS."""

import os
import sys

import steelyard


def main(address):
    run = steelyard.Run(steelyard.connect(address), "r")
    pid = os.fork()
    if pid == 0:
        print("child:", run.info().batch_size, flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    print("parent:", run.info().batch_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
