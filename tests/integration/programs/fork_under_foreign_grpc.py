"""Forks while only somebody else's channel is open: ADDRESS."""

import os
import sys

import grpc

import steelyard


def main(address):
    run = steelyard.Run(steelyard.connect(address), "r")
    channel = grpc.insecure_channel(address)
    grpc.channel_ready_future(channel).result(timeout=20)
    pid = os.fork()
    if pid == 0:
        try:
            print("child:", run.info().batch_size, flush=True)
        except steelyard.FailedPrecondition as error:
            print("child:", error.code, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    channel.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
