"""A trainer that joins, says so, and works on until it is told that it must not: ADDRESS RUN ATTEMPT."""

import sys

import numpy as np

import steelyard

address, run, attempt = sys.argv[1:]
session = steelyard.connect(address).run(run).join(attempt=attempt, timeout=60.0)
batch = session.next()
print("joined", flush=True)
sys.stdin.readline()
try:
    while True:
        session.report(batch, np.full(len(batch), 9, np.float32))
        batch = session.next()
except steelyard.SteelyardError as error:
    print(type(error).__name__, str(error).replace("\n", " "), flush=True)
