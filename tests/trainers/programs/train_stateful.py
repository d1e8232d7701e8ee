"""A trainer over a StatefulDataLoader: train_stateful.py ADDRESS RUN CHECKPOINT OPTIONS

Goes on from the file CHECKPOINT where there is one, and writes it after every `every` batches: the loader's state and,
in place of a model, the ids that were trained. OPTIONS is JSON: `workers`, `context`, `steps` of a pass and `passes`,
`every`, `micro_batches`, and `die_at`, the number of batches after which the process kills itself.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torchdata.stateful_dataloader import StatefulDataLoader  # type: ignore[import-untyped]

import steelyard
from steelyard.torch import BatchSampler


def write(checkpoint: Path, loader: Any, trained: list[list[int]], passes: int) -> None:
    torch.save(
        {"loader": loader.state_dict(), "trained": trained, "passes": passes}, checkpoint.with_suffix(".new")
    )
    checkpoint.with_suffix(".new").replace(checkpoint)


def main(address: str, run: str, checkpoint: Path, options: dict[str, Any]) -> None:
    trained: list[list[int]] = []
    passes = 0
    with BatchSampler(
        steelyard.connect(address).run(run),
        steps=options["steps"],
        micro_batches=options.get("micro_batches", 1),
    ) as sampler:
        loader = StatefulDataLoader(
            range(1 << 20),  # examples that are their own ids, and pickle
            batch_sampler=sampler,
            num_workers=options["workers"],
            prefetch_factor=2 if options["workers"] else None,
            multiprocessing_context=options.get("context"),
            persistent_workers=options.get("persistent", False),
        )
        if checkpoint.exists():
            state = torch.load(checkpoint)
            loader.load_state_dict(state["loader"])
            trained, passes = state["trained"], state["passes"]
        while passes < options["passes"]:
            for ids in loader:
                sampler.update((ids.float() * 0.37) % 1.0 + 0.1, ids=ids)
                trained.append(ids.tolist())
                if len(trained) % options["every"] == 0:
                    write(checkpoint, loader, trained, passes)
                if len(trained) == options.get("die_at"):
                    os.kill(os.getpid(), signal.SIGKILL)
            passes += 1
        write(checkpoint, loader, trained, passes)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
