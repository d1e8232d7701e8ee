"""A trainer that ends while its server stands still: ADDRESS RUN."""

import sys

import numpy as np

import steelyard

address, run = sys.argv[1:]
session = steelyard.connect(address).run(run).join(attempt="exits", timeout=60.0)
batch = session.next()
print("joined", flush=True)
sys.stdin.readline()
session.report_raw(batch, np.ones(len(batch)))
