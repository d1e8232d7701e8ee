"""What a server takes on: runs, datasets, examples and bytes; and what a full store does to trainers."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import steelyard
from steelyard.testing import ServerProcess, server

MIB = 1 << 20
SCORED = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}


def loss(ids, step):
    return np.asarray(1.0 + ids % 7 + step / 8, np.float32)


def train(run, steps, **join):
    with run.join(**{"prefetch": 2, "timeout": 60, **join}) as session:
        served = []
        for _ in range(steps):
            batch = session.next()
            session.report(batch, loss(batch.ids, batch.step))
            served.append(batch.ids.tolist())
        session.flush(60)
    return served


def exhausted(ask, *parts):
    with pytest.raises(steelyard.ResourceExhausted) as refusal:
        ask()
    assert refusal.value.code == "RESOURCE_EXHAUSTED"
    for part in parts:
        assert part in str(refusal.value)


def columns_until_refused(client, dataset, values):
    """Sets one column after the other; the number of the refused one, and what was said."""
    for number in range(100):
        try:
            client.set_column(dataset, f"c{number}", values)
        except steelyard.ResourceExhausted as error:
            return number, str(error)
    raise AssertionError("a hundred columns were taken")


def create(client, name, dataset="d", **settings):
    return client.create_run(name, dataset=dataset, batch_size=8, **settings)


def test_one_run_too_many_is_refused_with_every_figure_and_changes_nothing(tmp_path):
    with server(tmp_path, max_runs=2) as client:
        client.create_dataset("d", 60)
        for name in ("a", "b"):
            create(client, name)
        served = train(client.run("a"), 3)
        told = ("run 'c'", "this server has 2 runs", "max_runs is 2", "raise max_runs")
        exhausted(lambda: create(client, "c"), *told)
        exhausted(lambda: client.run("a").fork("c", step=2), *told)
        assert [one.name for one in client.list_runs()] == ["a", "b"]
        assert create(client, "a", exist_ok=True).info().closed_steps == 3
        client.delete_run("b")
        fork = client.run("a").fork("c", step=2)
        assert train(fork, 1) == served[2:]


def test_one_dataset_too_many_is_refused(tmp_path):
    with server(tmp_path, max_datasets=1) as client:
        client.create_dataset("d", 60)
        exhausted(lambda: client.create_dataset("e", 5), "dataset 'e'", "has 1 datasets", "max_datasets is 1")
        assert client.create_dataset("d", 60, exist_ok=True).size == 60
        client.delete_dataset("d")
        assert client.create_dataset("e", 5).size == 5


def test_a_run_counts_the_examples_of_its_dataset_also_as_it_grows(tmp_path):
    with server(tmp_path, max_examples=250) as client:
        client.create_dataset("d", 100)
        client.create_dataset("big", 10_000)
        for name in ("a", "b"):
            create(client, name)
        told = ("this server has 200 examples of runs", "max_examples is 250", "raise max_examples")
        exhausted(lambda: create(client, "c"), *told, "100 more would make 300")
        exhausted(lambda: create(client, "c", dataset="big"), *told)
        exhausted(lambda: client.append_examples("d", 26), *told, "52 more would make 252")
        assert client.dataset("d").size == 100
        assert client.append_examples("d", 25).size == 125
        assert client.run("a").info().dataset_size == 125
        exhausted(lambda: client.append_examples("d", 1), "has 250 examples of runs")
        assert client.append_examples("big", 10**6).size == 10**6 + 10_000
        client.delete_run("b")
        client.append_examples("d", 125)
        assert len(train(client.run("a"), 2)) == 2


def test_of_many_that_come_at_once_as_many_are_made_as_there_is_room_for(tmp_path):
    with server(tmp_path, max_runs=5, max_datasets=2) as client:
        client.create_dataset("d", 60)

        def attempt(make, *arguments):
            try:
                return make(*arguments) and "made"
            except steelyard.ResourceExhausted:
                return "refused"

        with ThreadPoolExecutor(12) as pool:
            runs = [pool.submit(attempt, create, client, f"r{number}") for number in range(12)]
            datasets = [pool.submit(attempt, client.create_dataset, f"e{number}", 9) for number in range(6)]
            assert [one.result(60) for one in runs].count("made") == 5
            assert [one.result(60) for one in datasets].count("made") == 1
        assert (len(client.list_runs()), len(client.list_datasets())) == (5, 2)


def test_lower_limits_than_what_there_is_serve_it_and_refuse_more(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 60)
        client.create_dataset("e", 60)
        for name in ("a", "b", "c"):
            train(create(client, name), 2)
    with server(tmp_path, max_runs=1, max_datasets=1, max_examples=70) as client:
        for name in ("a", "b", "c"):
            assert len(train(client.run(name), 2)) == 2
        exhausted(lambda: create(client, "x"), "has 3 runs", "max_runs is 1")
        exhausted(lambda: client.create_dataset("x", 1), "has 2 datasets", "max_datasets is 1")
        exhausted(lambda: client.append_examples("d", 1), "has 180 examples of runs", "max_examples is 70")
        assert create(client, "a", exist_ok=True).info().closed_steps == 4
        client.append_examples("e", 5)
        client.delete_run("a")
        client.delete_run("b")
        client.append_examples("d", 10)
        exhausted(lambda: create(client, "x"), "has 1 runs")


@pytest.mark.parametrize("durability", ["sync", "interval"])
def test_near_the_end_of_the_map_something_new_is_refused_and_trainings_go_on(tmp_path, durability):
    with server(tmp_path, map_size_bytes=MIB, max_map_size_bytes=8 * MIB, durability=durability) as client:
        client.create_dataset("d", 100_000)
        client.create_dataset("small", 60)
        run = create(client, "a", dataset="small", draw=SCORED)
        create(client, "b")
        served = train(run, 3)
        values = np.ones(100_000, np.float32)
        number, refusal = columns_until_refused(client, "d", values)
        assert number > 2
        assert f"values of column 'c{number}'" in refusal
        kept = f"the last {2 * MIB} are kept for the runs that there are"
        assert kept in refusal
        assert f"c{number}" not in client.dataset("d").columns
        ids = np.arange(100_000)
        exhausted(lambda: client.run("b").observe(ids, {"loss": values, "el2n": values}), "run 'b'", kept)
        served += train(run, 20)
        assert client.create_run("a", dataset="small", batch_size=8, draw=SCORED, exist_ok=True)
        client.delete_run("b")
        client.delete_dataset("d")
        create(client, "c", dataset="small")
        run.observe(np.arange(60), {"loss": values[:60]})
    assert served == alone(tmp_path / "twin", 23, dataset=60)


def alone(directory, steps, *, dataset, batch_size=8, **settings):
    """What a run of its own on a quiet server is served."""
    with server(directory) as calm:
        calm.create_dataset("d", dataset)
        run = calm.create_run("r", dataset="d", batch_size=batch_size, draw=SCORED, **settings)
        return train(run, steps)


class Trainer(threading.Thread):
    """Trains until told to stop; keeps what it was served, and what ended it."""

    def __init__(self, run, **join):
        super().__init__(daemon=True)
        self.run_, self.join_ = run, {"prefetch": 2, "timeout": 120, **join}
        self.served, self.error, self.over, self.most = [], None, threading.Event(), math.inf

    def run(self):
        try:
            with self.run_.join(**self.join_) as session:
                while not self.over.is_set() and len(self.served) < self.most:
                    batch = session.next()
                    session.report(batch, loss(batch.ids, batch.step))
                    self.served.append(batch.ids.tolist())
                session.flush(60)
        except steelyard.SteelyardError as error:
            self.error = error


def stalled(trainers, eventually):
    """Waits until nobody gets any further."""
    seen = [[-1]]

    def still():
        before, seen[0] = seen[0], [len(one.served) for one in trainers]
        time.sleep(1.5)
        return before == seen[0]

    eventually(still, 90)


@pytest.mark.parametrize(("durability", "way"), [("sync", "run"), ("interval", "run"), ("sync", "restart")])
def test_trainers_wait_for_room_and_go_on_by_themselves(tmp_path, eventually, durability, way):
    """Every acknowledged report is there at the end, and the batches are those of an undisturbed run."""
    settings = {"map_size_bytes": MIB, "durability": durability, "checkpoint_interval_seconds": 0.5}
    process = ServerProcess(tmp_path / "s", max_map_size_bytes=6 * MIB, **settings)
    with process:
        client = process.client(timeout=60)
        client.create_dataset("d", 4000)
        client.create_dataset("ballast", 200_000)
        for number in range(2):
            client.set_column("ballast", f"c{number}", np.ones(200_000, np.float32))
        runs = [client.create_run(name, dataset="d", batch_size=512, draw=SCORED) for name in ("a", "b")]
        trainers = [Trainer(run) for run in runs]
        for one in trainers:
            one.start()
        stalled(trainers, eventually)
        assert [one.error for one in trainers] == [None, None]
        with pytest.raises(steelyard.SteelyardError, match=r"the store in .* is full: .*max_map_size_bytes"):
            runs[0].join(rank=0, attempt="impatient", timeout=3)
        assert [one.name for one in client.list_runs()] == ["a", "b"]
        seen = [len(one.served) for one in trainers]
        for one, before in zip(trainers, seen, strict=True):
            one.most = before + 10  # so that the first to come leaves room for the other
        if way == "run":
            client.delete_dataset("ballast")
        else:
            process.kill()
            process._settings["max_map_size_bytes"] = 12 * MIB
            process.start()
        eventually(
            lambda: all(len(one.served) > before + 5 for one, before in zip(trainers, seen, strict=True)), 60
        )
        for one in trainers:
            one.over.set()
        for one in trainers:
            one.join(60)
            assert one.error is None
        steps = [run.info().closed_steps for run in runs]
        assert steps == [len(one.served) for one in trainers]
        assert [run.stats().reported_losses for run in runs] == [512 * count for count in steps]
    longest = max(trainers, key=lambda one: len(one.served)).served
    calm = alone(tmp_path / "twin", len(longest), dataset=4000, batch_size=512)
    for one in trainers:
        assert one.served == calm[: len(one.served)]


def test_a_session_that_is_tired_of_waiting_names_the_full_store(tmp_path, eventually):
    with server(tmp_path, map_size_bytes=MIB, max_map_size_bytes=2 * MIB) as client:
        client.create_dataset("d", 4000)
        trainer = Trainer(create(client, "a"), reconnect_timeout=3)
        big = client.create_run("b", dataset="d", batch_size=4000, draw=SCORED)
        filler = Trainer(big, reconnect_timeout=3)
        trainer.start()
        filler.start()
        eventually(lambda: filler.error is not None, 60)
        assert isinstance(filler.error, steelyard.Unavailable)
        assert "gave up" in str(filler.error)
        assert "is full" in str(filler.error)
        assert "max_map_size_bytes (2097152)" in str(filler.error)
        trainer.over.set()


def test_a_checkpoint_that_does_not_fit_is_skipped_and_the_run_trains_on(tmp_path, caplog):
    settings = {"map_size_bytes": MIB, "max_map_size_bytes": 8 * MIB, "checkpoint_interval_seconds": 0.3}
    with server(tmp_path / "s", **settings) as client:
        client.create_dataset("d", 3_000_000)
        run = client.create_run("a", dataset="d", batch_size=64, draw=SCORED)
        served = train(run, 5)
        seen = 0
        with run.join(timeout=60, prefetch=2) as session:
            while "checkpoint_skipped" not in caplog.text or seen < 5:
                batch = session.next()
                session.report(batch, loss(batch.ids, batch.step))
                served.append(batch.ids.tolist())
                seen += "checkpoint_skipped" in caplog.text
                assert len(served) < 3000, "no checkpoint was too big"
            session.flush(60)
        history = run.history(range(100))
    with server(tmp_path / "s", **{**settings, "max_map_size_bytes": 64 * MIB}) as client:
        run = client.run("a")
        assert run.history(range(100)) == history
        served += train(run, 5)
    assert served == alone(tmp_path / "twin", len(served), dataset=3_000_000, batch_size=64)


def test_deleting_a_run_frees_a_full_store_again_and_again(tmp_path, eventually):
    with server(tmp_path, map_size_bytes=MIB, max_map_size_bytes=4 * MIB) as client:
        client.create_dataset("d", 4000)
        counts = []
        for number in range(3):
            run = client.create_run("r", dataset="d", batch_size=2000, draw=SCORED)
            trainer = Trainer(run, reconnect_timeout=1)
            trainer.start()
            eventually(lambda trainer=trainer: trainer.error is not None, 60)
            assert "is full" in str(trainer.error), number
            exhausted(lambda: create(client, "more"), "run 'more'", "max_map_size_bytes")
            counts.append(len(trainer.served))
            client.delete_run("r")
        assert min(counts) > max(counts) // 2
        assert len(train(create(client, "r"), 3)) == 3
