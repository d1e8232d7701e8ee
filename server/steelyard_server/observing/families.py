"""Metric families made by the table of names, so that none is exported that is not described."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from steelyard_server.observing.names import BY_NAME, RPC_BUCKETS, Name
from steelyard_server.runs.tally import STEP_BUCKETS, Steps


def counter(name: str) -> Counter:
    """One that is counted as things happen; in no registry."""
    one = _of(name, "counter")
    return Counter(name, one.text, one.labels, registry=None)


def gauge(name: str) -> Gauge:
    """As counter."""
    one = _of(name, "gauge")
    return Gauge(name, one.text, one.labels, registry=None)


def histogram(name: str) -> Histogram:
    """As counter, of seconds."""
    one = _of(name, "histogram")
    return Histogram(name, one.text, one.labels, registry=None, buckets=RPC_BUCKETS)


class Families:
    """Families that are made at a scrape, each once, with what is put into it."""

    def __init__(self, names: tuple[Name, ...]) -> None:
        self.all: dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily] = {}
        for one in names:
            make = {
                "counter": CounterMetricFamily,
                "gauge": GaugeMetricFamily,
                "histogram": HistogramMetricFamily,
            }[one.kind]
            self.all[one.name] = make(one.name, one.text, labels=one.labels)

    def put(self, name: str, value: float, **labels: str) -> None:
        family = self.all[name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(_values(name, labels), value)

    def put_steps(self, name: str, steps: Steps, **labels: str) -> None:
        family = self.all[name]
        assert isinstance(family, HistogramMetricFamily)
        below, buckets = 0, []
        for bound, count in zip((*map(str, map(float, STEP_BUCKETS)), "+Inf"), steps.counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric(_values(name, labels), buckets, steps.total)


def _of(name: str, kind: str) -> Name:
    one = BY_NAME[name]
    assert one.kind == kind, one
    return one


def _values(name: str, labels: Mapping[str, str]) -> list[str]:
    assert set(labels) == set(BY_NAME[name].labels), (name, labels)
    return [labels[label] for label in BY_NAME[name].labels]
