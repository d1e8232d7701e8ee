"""Long service under load: does memory, do descriptors, threads, or the file grow?

The first third of the time is for filling what is filled once (retention, caches). Over the rest a line is fitted to
each series; a series grows where its slope, less twice its standard error, would add more than 5 % (and more than
`FLOOR`) in the time that it was fitted to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

import steelyard
from tests.robustness.faults.registry import Bench, Broken, Round, fault
from tests.robustness.faults.scene import Scene

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
EVERY_SECONDS = 2.0
SHARE = 0.05
FLOOR: Mapping[str, float] = {"memory": 8, "descriptors": 4, "threads": 4, "file": 16}
"""What counts as growth at least: MiB of memory and file, and so many descriptors and threads."""
RETAINED = 1000
SIMULATED_SECONDS = 1.0
"""A step of the training that is simulated."""


@fault(
    "soak",
    how="a training as fast as it goes; clients come, read, bookmark and go; a step stands for a second",
    bar="memory, descriptors, threads and file are flat: no slope beyond its uncertainty adds 5 %",
    rounds=1,
    suite=False,
)
def soak(bench: Bench) -> Iterator[Round]:
    seconds = 6.0 if bench.short else MINUTES * 60
    print(
        f"soak: trains for {seconds / 60:g} minutes, then folds the same run again, about as long", flush=True
    )
    fields = {"retain_steps": RETAINED}
    with Scene(bench, fields=fields, checkpoint_interval_seconds=10, log_level="warning") as scene:
        while True:
            rate = scene.load()
            first = len(scene.trainer.told)
            series = _watch(scene, seconds)
            steps = len(scene.trainer.told) - first
            scene.settle()
            figures: dict[str, int | float] = {
                "steps": steps,
                "hours simulated": steps * SIMULATED_SECONDS / 3600,
            }
            for name, values in series.items():
                slope, error = _slope(values)
                span = EVERY_SECONDS * len(values)
                figures[f"{name}, median"] = float(np.median(values))
                figures[f"{name}, grown"] = slope * span
                figures[f"{name}, ± of that"] = 2 * error * span
                grown = (abs(slope) - 2 * error) * span if slope > 0 else 0.0
                if grown > max(SHARE * float(np.median(values)), FLOOR[name]) and not bench.short:
                    raise Broken(
                        f"{name} grew by {slope * span:.1f} ± {2 * error * span:.1f} in {span:.0f} s"
                    )
            yield Round(rate, figures)


def _watch(scene: Scene, seconds: float) -> dict[str, list[float]]:
    """MiB of memory and file, and counts of descriptors and threads, every two seconds of the last two thirds."""
    series: dict[str, list[float]] = {name: [] for name in FLOOR}
    began = time.monotonic()
    number = 0
    while (now := time.monotonic()) < began + seconds:
        _visit(scene, number)
        scene.trainer.new()
        number += 1
        if now > began + seconds / 3:
            for name, value in _measured(scene).items():
                series[name].append(value)
        time.sleep(max(0.0, now + EVERY_SECONDS - time.monotonic()))
    return series


def _visit(scene: Scene, number: int) -> None:
    """A client that comes, reads, sets a bookmark, takes the last one away, and goes."""
    with steelyard.connect(scene.server.address, timeout=60) as client:
        run = client.run("r")
        info = run.info()
        run.stats()
        if number % 5 == 0:
            run.column("last_loss")
            run.bookmark(f"at-{number}", info.next_step)
            if number:
                run.delete_bookmark(f"at-{number - 5}")


def _measured(scene: Scene) -> dict[str, float]:
    process = Path(f"/proc/{scene.server.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "memory": int(status["RssAnon"].split()[0]) / 1024,
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "file": (scene.server.data / "data.mdb").stat().st_size / (1 << 20),
    }


def _slope(values: list[float]) -> tuple[float, float]:
    """A second's growth by least squares, and its standard error. Neighbouring values are much alike, so the error is
    that of means of ten parts."""
    parts = [float(np.mean(part)) for part in np.array_split(values, 10) if len(part)]
    at = np.arange(len(parts)) * EVERY_SECONDS * len(values) / len(parts)
    if len(parts) < 3:
        return 0.0, 0.0
    (slope, level), residual = np.polyfit(at, parts, 1), 0.0
    residual = float(np.sum((np.asarray(parts) - (slope * at + level)) ** 2)) / (len(parts) - 2)
    return float(slope), float(np.sqrt(residual / np.sum((at - at.mean()) ** 2)))
