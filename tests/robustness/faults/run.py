"""Plays faults, round by round, and says what each came to.

    make faults [ONLY="server killed"] [ROUNDS=20] [MINUTES=5] [SEED=7] [KEEP=1]

Without ROUNDS each fault is played as often as the table wants; MINUTES ends each one early. With KEEP every round adds
a line to tests/robustness/score.jsonl, from which the table of tests/robustness/README.md is made at the end; both are
tracked, and nothing that is tracked is written without. What is in the score already stays: rounds add up. A round that
does not hold ends its fault, keeps its files, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# In place of this folder: its modules are tests.robustness.faults.*, here and in the programs that they start.
sys.path[0] = str(ROOT)

from steelyard_server.kernels_at_start import NoCompiledKernelsError, Takeover  # noqa: E402
from tests.robustness.faults import outcome, table  # noqa: E402
from tests.robustness.faults.registry import Bench, Broken, CannotBeTried, Fault, faults  # noqa: E402


def main() -> int:
    options = _options()
    known = faults()
    chosen = [known[options.only]] if options.only in known else _named(known, options.only)
    if not chosen:
        print(f"expected a part of the name of a fault: {', '.join(known)}; got {options.only!r}")
        return 2
    if options.list:
        for one in chosen:
            print(f"{one.name} ({one.rounds} rounds): {one.how}")
        return 0
    if not options.table:
        compiled_kernels()
    held = [] if options.table else [_play(one, options) for one in chosen]
    if options.keep or options.table:
        table.write()
    return 0 if all(held) else 1


def compiled_kernels() -> None:
    """For the model: it folds all that a run did, for which NumPy takes a multiple of the time that the run took."""
    try:
        Takeover().finish()
    except NoCompiledKernelsError as error:
        print(f"the model folds by NumPy, which takes long: {error}", flush=True)


def _named(known: Mapping[str, Fault], part: str) -> list[Fault]:
    """Those whose name has `part` in it."""
    return [one for one in known.values() if part in one.name]


def _play(one: Fault, options: argparse.Namespace) -> bool:
    """Plays rounds of a fault. Whether all held."""
    folder = (
        options.folder / f"{one.name.replace(' ', '-').replace('/', '-')}-{options.seed}-{time.time_ns()}"
    )
    folder.mkdir(parents=True)
    bench = Bench(folder, random.Random(f"{options.seed} {one.name}"))
    rounds = one.play(bench)
    deadline = time.monotonic() + options.minutes * 60
    most = options.rounds or one.rounds
    played = 0
    try:
        while played < most and time.monotonic() < deadline:
            began = time.monotonic()
            try:
                found = next(rounds, None)
            except CannotBeTried as lacking:
                print(f"{one.name}: cannot be tried here: {lacking}", flush=True)
                break
            except Broken as broken:
                _note(
                    outcome.outcome(one.name, time.monotonic() - began, None, {}, str(broken)), options.keep
                )
                print(
                    f"{one.name}: BROKEN (seed {options.seed}): {broken}\nits files are in {folder}",
                    flush=True,
                )
                return False
            if found is None:
                break
            played += 1
            _note(
                outcome.outcome(one.name, time.monotonic() - began, found.load, found.figures), options.keep
            )
    finally:
        rounds.close()  # type: ignore[attr-defined]  # a generator: what it started ends with it
        print(f"{one.name}: {played} rounds held", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _note(one: outcome.Outcome, keep: bool) -> None:
    if keep:
        outcome.append(one)
    print(one.line(), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="a part of the names of the faults to play; all by default"
    )
    parser.add_argument("--rounds", type=int, default=0, help="of each fault; as the table wants by default")
    parser.add_argument("--minutes", type=float, default=1e6, help="of each fault at most")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument(
        "--keep", action="store_true", help="add each round to the score, and write the table from it"
    )
    parser.add_argument("--list", action="store_true", help="name the faults, and do nothing")
    parser.add_argument(
        "--table", action="store_true", help="write the table from the score, and play nothing"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "faults", help="where the files go")
    return parser.parse_args()


if __name__ == "__main__":
    # So that what was started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("ended from outside, before the round was over: nothing is known of it")
