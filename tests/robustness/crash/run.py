"""Kills servers and trainers for as long as it is told, and compares all that they did with runs that nobody disturbed.

    make crash MINUTES=10 [SEED=7] [ROUND=3]

What follows from the seed, and is the same at every repetition: the plan. That is, round by round, the runs and their
policies, the world sizes of each attempt, the losses, what is done (kill -9 of the server, of trainers, of both, while
starting, while recovering, at a named place in the server's code; a drain; processes that stand still and go on, also
after they were superseded; bookmarks, rewinds, forks, growth, retirements), after how many batches, and how many
milliseconds later. --plan prints it. What does not follow: how the kernel schedules the processes in between, and so
which instruction a kill that is not at a named place hits. A failure prints its seed and round and keeps its files; to
repeat it, run the same round again, more than once.

A round holds five runs at once on one server, their forks, and up to four trainer processes, which are real ones. What
is compared: every slice that any trainer was served and the weights that it was answered with, and at the end every
retained batch, the columns, the histories and the counts of every run.

Exit status: 0 when everything held; 1 when something did not; 130 when it was interrupted and everything had held.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[3]
# In place of this folder: its modules are tests.robustness.crash.*, here and in the programs that they start.
sys.path[0] = str(ROOT)

from tests.robustness.crash.losses import losses_of  # noqa: E402
from tests.robustness.crash.nursery import Nursery  # noqa: E402
from tests.robustness.crash.plan import DECK, plan_of  # noqa: E402
from tests.robustness.crash.processes import CrashFailure  # noqa: E402
from tests.robustness.crash.round import Result, Round  # noqa: E402

PLANTS = {
    "none": ("none", losses_of),
    "server": ("forget a loss", losses_of),
}
"""Faults to plant, which the crash test must find: into the server, or into the losses of the undisturbed runs."""


def wrong_losses(run: str, attempt: int, step: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Those of the trainers, but for one."""
    losses = losses_of(run, attempt, step, ids)
    if run == "fresh" and step == 3:
        losses[0] = 7.0
    return losses


PLANTS["twin"] = ("none", wrong_losses)


class Total:
    """What all rounds have survived."""

    def __init__(self, seed: int) -> None:
        self.seed, self.began = seed, time.monotonic()
        self.rounds = 0
        self.kills: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        self.rounds += 1
        self.kills += result.kills
        for name in ("servers", "trainers", "batches", "reports", "disturbances", "untouched_traps"):
            self.counts[name] += getattr(result, name)

    def __str__(self) -> str:
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        return (
            f"{self.rounds} rounds, {self.counts['servers'] + self.counts['trainers']} processes killed "
            f"({self.counts['servers']} servers, {self.counts['trainers']} trainers), "
            f"{self.counts['batches']} slices served and compared, {self.counts['reports']} losses counted once; "
            f"seed {self.seed}, {minutes} min {seconds} s\nkills by kind: {kinds}"
        )


def main() -> int:
    options = _options()
    if options.plan:
        print(plan_of(options.seed, options.round, options.kinds))
        return 0
    print(
        f"seed {options.seed}: repeat with make crash SEED={options.seed} ROUND={options.round}. The plan repeats, not "
        "what the kernel makes of it. In a round several runs are trained, disturbed by the plan, and compared with "
        "the same history lived calmly",
        flush=True,
    )
    total = Total(options.seed)
    nursery = Nursery()
    deadline = time.monotonic() + options.minutes * 60
    number = options.round
    try:
        while time.monotonic() < deadline and total.rounds < options.rounds:
            if not _play(options, nursery, number, deadline, total):
                return 1
            number += 1
    except KeyboardInterrupt:
        print("interrupted; the round under way is not counted", flush=True)
        return 130
    finally:
        nursery.end()
        print(total, flush=True)
    return 0


def _play(options: argparse.Namespace, nursery: Nursery, number: int, deadline: float, total: Total) -> bool:
    """Plays a round. Whether everything held."""
    began = time.monotonic()
    plan = plan_of(options.seed, number, options.kinds)
    folder = options.folder / f"seed-{options.seed}-round-{number}-{time.time_ns()}"
    fault, losses = PLANTS[options.plant]
    one = Round(plan, nursery, folder, fault=fault, losses=losses)
    try:
        result = one.play(deadline)
    except CrashFailure as failure:
        print(
            f"FAILED in round {number} of seed {options.seed}: {failure}\n"
            f"its files are in {folder}\nrepeat with: make crash SEED={options.seed} ROUND={number}\n{plan}",
            flush=True,
        )
        return False
    except KeyboardInterrupt:
        one.forget()
        raise
    one.forget()
    total.add(result)
    print(
        f"round {number} held: {result.disturbances} disturbances, {result.servers} servers and {result.trainers} "
        f"trainers killed, {result.untouched_traps} traps at places that the server did not pass, {result.batches} "
        f"slices and {result.reports} losses compared, durability {plan.durability}, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no disturbance after so long")
    parser.add_argument("--seed", type=int, default=None, help="of the plans; one that is new by default")
    parser.add_argument("--round", type=int, default=0, help="the first round to play")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="rounds to play at most")
    parser.add_argument(
        "--kinds", nargs="+", choices=sorted(set(DECK)), default=DECK, help="the disturbances of a round"
    )
    parser.add_argument("--plan", action="store_true", help="print the plan of the round, and do nothing")
    parser.add_argument("--plant", choices=PLANTS, default="none", help="a fault that must be found")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "crash", help="where the files go")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 31)
    return options


if __name__ == "__main__":
    # Also where it runs in the background of a script, which has it ignore the key.
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.default_int_handler)
    sys.exit(main())
