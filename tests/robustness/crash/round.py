"""One round: runs are served and trained, everything is killed again and again, and all of it is compared."""

from __future__ import annotations

import itertools
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import steelyard
from steelyard.errors import AlreadyExists, DeadlineExceeded, Unavailable
from tests.robustness.crash.calm import Losses, fold
from tests.robustness.crash.chronicle import Chronicle, Forked, Grown, Launch, PolicyOf, Retired, Story
from tests.robustness.crash.compare import Heard, check_run, check_said
from tests.robustness.crash.losses import losses_of
from tests.robustness.crash.nursery import Nursery
from tests.robustness.crash.plan import Disturbance, Plan
from tests.robustness.crash.processes import CrashFailure, Job, Server, await_that

T = TypeVar("T")

PROGRESS_SECONDS = 120.0
TRAP_SECONDS = 10.0
CALL_SECONDS = 60.0
PACE = 0.004
MOST_RUNS = 7
LAST_STEPS = 10
"""Steps that the last attempt trains beyond all that was drawn before."""


@dataclass(slots=True)
class Result:
    """What a round survived."""

    kills: Counter[str] = field(default_factory=Counter)
    """Processes killed with SIGKILL, by the kind of the disturbance."""
    servers: int = 0
    trainers: int = 0
    untouched_traps: int = 0
    disturbances: int = 0
    batches: int = 0
    """Slices that trainers were served, each compared."""
    reports: int = 0
    """Losses in the runs at the end: each reported once and counted once."""


class Round:
    """`play` does everything and raises CrashFailure where a promise did not hold."""

    def __init__(
        self, plan: Plan, nursery: Nursery, folder: Path, *, fault: str = "none", losses: Losses = losses_of
    ) -> None:
        """`fault` is planted into the server; `losses` are those of the undisturbed runs."""
        self._plan, self._nursery, self._folder, self._losses = plan, nursery, folder, losses
        self._server = Server(
            nursery,
            folder / "server",
            {
                "durability": plan.durability,
                "grace_seconds": 20,
                "log_level": "info",
                **plan.settings,
            },
            fault,
        )
        self._client = steelyard.connect(self._server.address, timeout=CALL_SECONDS)
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="owner")
        self._story = Story(plan.size)
        self._jobs: list[Job] = []
        self._zombies: list[Job] = []
        self._names = itertools.count()
        self._started = 1.0
        self.result = Result()

    @property
    def _job(self) -> Job:
        return self._jobs[-1]

    def play(self, deadline: float) -> Result:
        """Up to `deadline` (of time.monotonic), or until all disturbances of the plan are done, and the comparison."""
        try:
            self._begin()
            for one in self._plan.disturbances:
                if time.monotonic() > deadline:
                    break
                self._disturb(one)
            self._finish()
            return self.result
        except steelyard.errors.SteelyardError as error:
            raise CrashFailure(f"{error!r}\n{self._last_words()}") from error
        finally:
            self._end()

    # ---- the beginning and the end ----

    def _begin(self) -> None:
        self._server.spawn()  # returns when the process is there, however long its imports took
        began = time.monotonic()
        self._server.await_answer()
        self._started = time.monotonic() - began
        self._client.create_dataset("d", self._plan.size)
        for name, fields in self._plan.runs.items():
            self._client.create_run(name, dataset="d", **fields)
            self._story.runs[name] = Chronicle(name, fields)
        self._launch(self._plan.worlds)

    def _finish(self) -> None:
        """The last attempt trains to the stop in peace; the server is killed once more; then all is compared."""
        self._kill_trainers("end")
        stop = {name: self._client.run(name).info().next_step + LAST_STEPS for name in self._story.runs}
        self._launch([1 + len(self._jobs) % 3], stop)
        self._wait(lambda: self._job.over, "the last trainers have not finished")
        self._expect_ends(self._job, "finished")
        self._kill_server("end")
        self._server.start()
        self._compare(stop)
        self._server.drain()

    def _compare(self, stop: dict[str, int]) -> None:
        heard = Heard.of(self._jobs)
        infos = {name: self._client.run(name).info() for name in self._story.runs}
        for name, info in infos.items():
            if not info.closed_steps == stop[name] <= info.next_step:
                raise CrashFailure(
                    f"run {name!r}: expected the steps below {stop[name]} closed, got {info.closed_steps} of "
                    f"{info.next_step}"
                )
        drawn = {name: info.next_step for name, info in infos.items()}
        calm = fold(self._story, heard.ends(), drawn, stop, self._losses)
        self.result.batches = check_said(heard, self._story, calm)
        for name, chronicle in self._story.runs.items():
            check_run(self._client.run(name), chronicle, calm[name], stop[name])
            self.result.reports += calm[name].end.counters.reported_losses

    def _end(self) -> None:
        self._server.end()
        for job in self._jobs:
            job.end()
        self._client.close()
        self._owner.shutdown(wait=False, cancel_futures=True)
        self.result.servers = self._server.killed
        self.result.trainers = sum(job.killed for job in self._jobs)

    def forget(self) -> None:
        """Removes what the round has left on the disk."""
        shutil.rmtree(self._folder)

    # ---- trainers ----

    def _launch(self, worlds: Sequence[int], stop: dict[str, int] | None = None) -> None:
        """A new attempt: every run from its own checkpoint, at world sizes that the plan has."""
        attempt = len(self._jobs)
        runs = self._story.runs
        sizes = dict(zip(runs, itertools.cycle(worlds), strict=False))
        starts = {name: chronicle.checkpoint for name, chronicle in runs.items()}
        job = Job(attempt, self._folder / f"attempt-{attempt}", sizes, starts)
        reads = {name: one.fields.get("weigh", {}).get("method") == "linupper" for name, one in runs.items()}
        job.describe(self._server.address, f"{self._plan.seed} {self._plan.number}", reads, PACE)
        if stop is not None:
            job.stop_at(stop)
        for chronicle in runs.values():
            chronicle.tale.append(Launch(attempt, chronicle.checkpoint, len(self._story.changes)))
        for rank in job.ranks:
            job.launch(self._nursery, rank)
        self._jobs.append(job)

    def _kill_trainers(self, kind: str) -> None:
        before = self._job.killed
        for rank in self._job.ranks:
            self._job.kill(rank)
        self.result.kills[kind] += self._job.killed - before
        self._read_checkpoints()

    def _read_checkpoints(self) -> None:
        for name, chronicle in self._story.runs.items():
            if name in self._job.starts:  # a fork is trained from the next attempt on
                chronicle.checkpoint = max(chronicle.checkpoint, self._job.checkpoint(name))

    def _expect_ends(self, job: Job, how: str) -> None:
        job.listen()
        for name, world in job.worlds.items():
            for rank in range(world):
                got = job.ends.get((name, rank), ("nothing", ""))
                if got[0] != how:
                    raise CrashFailure(
                        f"attempt {job.attempt}, run {name!r}, rank {rank}: expected it {how}, got {got[0]}: {got[1]}\n"
                        f"{job.last_words()}\n{self._server.last_words()}"
                    )

    # ---- waiting ----

    def _wait(self, condition: Callable[[], bool], what: str, *, revive: bool = False) -> None:
        """Waits, and looks for trainers and servers that end when nobody told them to. With `revive` a server that died
        in its trap is started again."""

        def met() -> bool:
            for job in (self._job, *self._zombies):
                job.listen()
                self._check_failed(job)
            if not self._server.alive:
                if not revive:
                    raise CrashFailure(
                        f"the server is gone, and nobody killed it; {self._server.last_words()}"
                    )
                self._server.kill()
                self._server.start()
            return condition()

        await_that(met, PROGRESS_SECONDS, lambda: f"{what}\n{self._last_words()}")

    def _check_failed(self, job: Job) -> None:
        for (name, rank), (how, message) in job.ends.items():
            if how == "failed":
                raise CrashFailure(
                    f"attempt {job.attempt}, run {name!r}, rank {rank} failed:\n{message}\n{self._server.last_words()}"
                )

    def _last_words(self) -> str:
        return "\n".join([self._server.last_words(), *(job.last_words() for job in self._jobs[-2:])])

    def _await_batches(self, count: int) -> None:
        """Waits until the trainers have taken `count` further batches."""
        self._job.listen()
        goal = self._job.counted["batch"] + count
        self._wait(
            lambda: self._job.counted["batch"] >= goal,
            f"the trainers took {self._job.counted['batch']} batches, not {goal}",
        )

    def _await_joined(self, *, revive: bool = False) -> None:
        """A launch that the server has never heard of is new to it, whenever it comes: one that is to be told to stop
        must have joined all its runs."""
        self._wait(lambda: self._job.everyone_joined, "the trainers have not joined", revive=revive)

    # ---- the disturbances ----

    def _disturb(self, one: Disturbance) -> None:
        self._await_batches(one.after)
        time.sleep(one.delay)
        _KINDS[one.kind](self, one)
        self.result.disturbances += 1

    def _kill_server(self, kind: str) -> None:
        self._server.kill()
        self.result.kills[kind] += 1

    def _server_alone(self, one: Disturbance) -> None:
        self._kill_server(one.kind)
        self._server.start()

    def _trainer(self, one: Disturbance) -> None:
        """One rank dies and comes back into the same attempt."""
        rank = one.choice % len(self._job.ranks)
        before = self._job.killed
        self._job.kill(rank)
        self.result.kills[one.kind] += self._job.killed - before
        self._job.launch(self._nursery, rank)

    def _trainers(self, one: Disturbance) -> None:
        self._kill_trainers(one.kind)
        self._launch(one.worlds)

    def _both(self, one: Disturbance) -> None:
        self._kill_server(one.kind)
        self._kill_trainers(one.kind)
        self._launch(one.worlds)
        self._server.start()

    def _boot(self, one: Disturbance) -> None:
        """Dies again and again on its way up: before, while and after it opens what is on the disk."""
        self._kill_server(one.kind)
        for share in one.delays:
            self._server.spawn()
            time.sleep(share * self._started)
            self._kill_server(one.kind)
        self._server.start()

    def _recovery(self, one: Disturbance) -> None:
        """Dies while its runs are read again and the trainers come back."""
        self._kill_server(one.kind)
        for delay in one.delays:
            if one.point:
                self._server.arm(one.point, one.nth)
            self._server.spawn()
            if not self._server.await_answer():
                self.result.kills[one.kind] += 1
                continue
            time.sleep(delay)
            self._kill_server(one.kind)
        self._server.start()

    def _point(self, one: Disturbance) -> None:
        """Dies at an exact place."""
        self._server.arm(one.point, one.nth)
        if not self._server.await_death(TRAP_SECONDS):
            self.result.untouched_traps += 1
            self._server.disarm()
            self._server.kill()
        self.result.kills[f"{one.kind} {one.point.partition('.')[0]}"] += 1
        self._server.start()

    def _drain(self, one: Disturbance) -> None:
        self._server.drain()
        self._server.start()

    def _pause_server(self, one: Disturbance) -> None:
        self._server.pause()
        time.sleep(one.delays[0])
        self._server.resume()

    def _pause_trainer(self, one: Disturbance) -> None:
        rank = one.choice % len(self._job.ranks)
        self._job.signal(signal.SIGSTOP, rank)
        time.sleep(one.delays[0])
        self._job.signal(signal.SIGCONT, rank)

    def _zombie(self, one: Disturbance) -> None:
        """All trainers stand still, are superseded, and go on where they were."""
        zombies = self._job
        self._await_joined()
        zombies.signal(signal.SIGSTOP)
        self._read_checkpoints()
        self._launch(one.worlds)
        self._await_joined()
        self._await_batches(one.after)
        zombies.signal(signal.SIGCONT)
        self._zombies.append(zombies)
        self._wait(lambda: zombies.over, "the zombies were not told to stop")
        self._zombies.remove(zombies)
        self._expect_ends(zombies, "aborted")
        self._await_batches(one.after)

    def _attempt(self, one: Disturbance) -> None:
        """The server dies while it takes the runs back for a new attempt."""
        self._kill_trainers(one.kind)
        with self._trapped(one):
            self._launch(one.worlds)
            self._await_joined(revive=True)

    # ---- what the owner does ----

    @contextmanager
    def _trapped(self, one: Disturbance) -> Iterator[None]:
        """The server may die, at the place that the plan says, while its owner asks it for something."""
        before = self._server.killed
        if one.point:
            self._server.arm(one.point, one.nth)
        yield
        self._server.disarm()
        time.sleep(0.02)
        if not self._server.alive:  # the trap sprang behind the last answer
            self._server.kill()
            self._server.start()
        self.result.kills[one.kind] += self._server.killed - before

    def _ask(self, call: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """The answer of an owner's call, which is made again, or `again` is, where the server dies meanwhile."""
        deadline = time.monotonic() + PROGRESS_SECONDS
        while True:
            answer = self._owner.submit(call)
            self._wait(answer.done, "an owner's call is not answered", revive=True)
            try:
                return answer.result(0)
            except (Unavailable, DeadlineExceeded) as error:
                if time.monotonic() > deadline:
                    raise CrashFailure(f"an owner's call fails on: {error}\n{self._last_words()}") from error
                call = again or call

    def _some_run(self, choice: int) -> Chronicle:
        runs = list(self._story.runs.values())
        return runs[choice % len(runs)]

    def _bookmark(self, one: Disturbance) -> None:
        with self._trapped(one):
            for chronicle in self._story.runs.values():
                self._read_checkpoints()
                self._hold(chronicle)

    def _hold(self, chronicle: Chronicle) -> str:
        """A bookmark at the checkpoint, which is retained then however far the run goes on. Returns its name."""
        name, run, step = f"b{next(self._names)}", self._client_run(chronicle), chronicle.checkpoint
        self._ask(lambda: run.bookmark(name, step))
        chronicle.bookmarks[name] = step
        return name

    def _hold_all(self) -> dict[str, str]:
        self._read_checkpoints()
        return {name: self._hold(chronicle) for name, chronicle in self._story.runs.items()}

    def _client_run(self, chronicle: Chronicle) -> steelyard.Run:
        return steelyard.Run(self._client, chronicle.name)

    def _rewind(self, one: Disturbance) -> None:
        """All runs go back, each to one of its bookmarks, the newest included. Their trainers are told."""
        self._await_joined()
        held = self._hold_all()
        with self._trapped(one):
            for number, (run, chronicle) in enumerate(self._story.runs.items()):
                names = sorted(chronicle.bookmarks)
                older = (one.choice >> number) & 1
                self._take_back(chronicle, names[one.choice % len(names)] if older else held[run])
        self._after_rewind(one)

    def _take_back(self, chronicle: Chronicle, bookmark: str) -> None:
        run = self._client_run(chronicle)
        self._ask(lambda: run.rewind(bookmark))
        chronicle.went_back(chronicle.bookmarks[bookmark])

    def _after_rewind(self, one: Disturbance) -> None:
        self._wait(lambda: self._job.over, "the trainers were not told that their runs went back")
        self._expect_ends(self._job, "aborted")
        self._launch(one.worlds)

    def _fork(self, one: Disturbance) -> None:
        """A run is forked at its checkpoint, and the fork is trained too."""
        if len(self._story.runs) >= MOST_RUNS:
            self._bookmark(one)
            return
        self._read_checkpoints()
        parent = self._some_run(one.choice)
        held, at = self._hold(parent), parent.checkpoint
        name, run = f"fork{next(self._names)}", self._client_run(parent)

        def again() -> steelyard.Run:
            try:
                return run.fork(name, step=held)
            except AlreadyExists:
                return steelyard.Run(self._client, name)

        with self._trapped(one):
            self._ask(lambda: run.fork(name, step=held), again)
        parent.tale.append(Forked(name, at, len(self._story.changes)))
        self._story.runs[name] = Chronicle(name, parent.fields, parent=parent.name, checkpoint=at)
        self._kill_trainers(one.kind)
        self._launch(one.worlds)

    def _policy(self, one: Disturbance) -> None:
        """A run goes back to its checkpoint and on with another policy, which needs no other column."""
        self._await_joined()
        held = self._hold_all()
        chronicle = self._some_run(one.choice)
        run, at = self._client_run(chronicle), chronicle.checkpoint
        info = run.info()
        policy = _another_policy({"draw": info.draw, "weigh": info.weigh}, one.choice)
        with self._trapped(one):
            for name, other in self._story.runs.items():
                self._take_back(other, held[name])
            self._ask(lambda: run.change_policy(**policy))
        chronicle.tale.append(PolicyOf(at, policy))
        self._after_rewind(one)

    def _grow(self, one: Disturbance) -> None:
        size = self._story.size_now
        count = 5 + one.choice % 40
        self._change(
            one,
            Grown(size + count),
            lambda: self._client.append_examples("d", count, expected_size=size),
        )

    def _retire(self, one: Disturbance) -> None:
        first = one.choice % (self._story.size_now - 8)
        ids = tuple(range(first, first + 1 + one.choice % 7))
        self._change(one, Retired(ids), lambda: self._client.retire("d", ids))

    def _change(self, one: Disturbance, change: Grown | Retired, call: Callable[[], object]) -> None:
        """The dataset changes while it is trained on; then every run goes back to its checkpoint, so that it is known
        from which step on the change counts."""
        self._await_joined()
        held = self._hold_all()
        for chronicle in self._story.runs.values():
            chronicle.unknown[self._job.attempt] = self._client_run(chronicle).info().next_step
        with self._trapped(one):
            self._ask(call)
            self._story.changes.append(change)
            for name, chronicle in self._story.runs.items():
                self._take_back(chronicle, held[name])
        self._after_rewind(one)


def _another_policy(policy: Mapping[str, Mapping[str, Any]], choice: int) -> dict[str, dict[str, Any]]:
    draw, weigh = dict(policy["draw"]), dict(policy["weigh"])
    if draw["method"] == "scored":
        draw["floor"] = (1 + choice % 8) / 16
    elif weigh["method"] == "linupper":
        weigh["r"] = (3 + choice % 6) / 8
    else:
        weigh = {"method": "importance", "beta": (1 + choice % 4) / 4}
    return {"draw": draw, "weigh": weigh}


_KINDS: Mapping[str, Callable[[Round, Disturbance], None]] = {
    "server": Round._server_alone,
    "trainer": Round._trainer,
    "trainers": Round._trainers,
    "both": Round._both,
    "boot": Round._boot,
    "recovery": Round._recovery,
    "checkpoint": Round._point,
    "point": Round._point,
    "drain": Round._drain,
    "pause server": Round._pause_server,
    "pause trainer": Round._pause_trainer,
    "zombie": Round._zombie,
    "attempt": Round._attempt,
    "bookmark": Round._bookmark,
    "rewind": Round._rewind,
    "fork": Round._fork,
    "policy": Round._policy,
    "grow": Round._grow,
    "retire": Round._retire,
}
