"""Trains a small language model on batches that Steelyard serves.

    torchrun --standalone --nproc-per-node 2 -- trainer_example/train.py --address 127.0.0.1:7077 --run my-run --out out

What is Steelyard's here is marked [1] to [4]; the rest is what any training under DDP has. Without torchrun it trains
in one process. Killed and launched again with the same --out, it goes on from its last checkpoint: the run is taken
back to that step, and the batches are those that would have come.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from corpus import Blocks
from model import GPT, Shape, loss_per_example
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import steelyard
import steelyard.torch

WAIT_SECONDS = 120  # for another rank, or for a worker: whoever waits longer says so and ends


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Where the batches come from.
    parser.add_argument("--address", default="127.0.0.1:7077", help="HOST:PORT of the server")
    parser.add_argument(
        "--run", required=True, help="name of the run; made if it is not there, and if that is allowed"
    )
    parser.add_argument(
        "--weigh", type=json.loads, default={"method": "uniform"}, help="the weigh policy, as JSON"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="examples of a global batch, over all ranks"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the weights' start and of the order of the examples"
    )
    # What is trained, and for how long. The learning rate is the best of 1, 2 and 4e-3 for uniform weights.
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--learning-rate", type=float, default=2e-3, help="its peak; falls in a line to a tenth"
    )
    parser.add_argument("--block", type=int, default=64, help="bytes of an example")
    parser.add_argument("--train-every", type=int, default=16, help="train on one block in this many")
    parser.add_argument("--held-out-every", type=int, default=40, help="evaluate on one block in this many")
    # What is written, and when.
    parser.add_argument("--out", type=Path, required=True, help="folder of metrics.jsonl and checkpoint.pt")
    parser.add_argument("--evaluate-every", type=int, default=50, help="steps between two evaluations")
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps between two checkpoints")
    parser.add_argument("--workers", type=int, default=1, help="processes that load data, for each rank")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, for each rank")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=WAIT_SECONDS))
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    train = Blocks("train", block=args.block, every=args.train_every)
    held_out = Blocks("held-out", block=args.block, every=args.held_out_every)
    model: torch.nn.Module = GPT(Shape(block=args.block))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )

    checkpoint = args.out / "checkpoint.pt"
    saved: dict[str, Any] | None = torch.load(checkpoint) if checkpoint.exists() else None
    start_step = 0
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start_step = saved["sampler"]["step"]
    if start_step >= args.steps:
        print(f"Nothing to do: {checkpoint} is of step {start_step}, and --steps is {args.steps}.")
        return
    bare = model
    if world_size > 1:
        model = DistributedDataParallel(model)

    # [1] The run decides which examples come and how much each counts. Every rank may say so: the first one makes it.
    client = steelyard.connect(args.address)
    dataset = f"stdlib-{train.fingerprint()}"
    try:
        client.create_dataset(dataset, size=len(train), fingerprint=train.fingerprint(), exist_ok=True)
        run = client.create_run(
            args.run,
            dataset=dataset,
            batch_size=args.batch_size,
            seed=args.seed,
            weigh=args.weigh,
            exist_ok=True,
        )
    except steelyard.PermissionDenied:
        # A server with an access table may let trainers train and not create: then an admin has made the run, and it is
        # as it was made, whatever this command line says of batch size, seed and weigher.
        run = client.run(args.run)
        if run.info().dataset != dataset:
            raise

    # [2] The sampler hands this rank's slice of every batch to the loader.
    sampler = steelyard.torch.BatchSampler(
        run, rank=rank, world_size=world_size, start_step=start_step, steps=args.steps - start_step
    )
    if saved is not None:
        sampler.load_state_dict(saved["sampler"])
    loader = DataLoader(
        train, batch_sampler=sampler, num_workers=args.workers, timeout=WAIT_SECONDS if args.workers else 0
    )

    metrics = (args.out / "metrics.jsonl").open("a", encoding="utf-8") if rank == 0 else None
    waited, began = 0.0, time.monotonic()
    for x, y in loader:
        step = sampler.step
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)

        # [3] The losses of these examples go in; out comes what to descend on: weighed, and right for any world size.
        loss = sampler.update(loss_per_example(model, x, y))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        step += 1
        line: dict[str, float] = {"step": step, "waited": sampler.waited_seconds - waited}
        waited = sampler.waited_seconds
        if step % args.evaluate_every == 0 or step == args.steps:
            line["held_out"] = evaluate(bare, held_out, rank, world_size)
        if metrics is not None:
            print(json.dumps({**line, "seconds": time.monotonic() - began}), file=metrics, flush=True)

        # [4] What the sampler must remember is a step. Every rank asks, so that the reports of all are durable.
        if step % args.checkpoint_every == 0 or step == args.steps:
            position = sampler.state_dict()
            if world_size > 1:
                dist.barrier()
            if rank == 0:
                state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "sampler": position}
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)

    sampler.close()
    client.close()
    if world_size > 1:
        dist.destroy_process_group()


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Rises over 20 steps, then falls in a line to a tenth of the peak."""
    rising, falling = (step + 1) / 20, 1 - 0.9 * step / args.steps
    return float(args.learning_rate * min(rising, falling))


@torch.no_grad()
def evaluate(model: torch.nn.Module, blocks: Blocks, rank: int, world_size: int) -> float:
    """The loss per byte of text that is never trained on, in nats. The ranks share the work and agree on the answer."""
    total = torch.zeros(())
    for x, y in DataLoader(blocks, batch_size=64, sampler=range(rank, len(blocks), world_size)):
        total += loss_per_example(model, x, y).sum()
    if world_size > 1:
        dist.all_reduce(total)
    return total.item() / len(blocks)


if __name__ == "__main__":
    main()
