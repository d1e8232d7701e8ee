"""Writes dashboard.json, the Grafana dashboard: what a platform engineer asks first, then a run in detail.

python deploy/monitoring/dashboard.py            writes it
python deploy/monitoring/dashboard.py --check    writes nothing; exit 1 when what is committed differs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, VariableRefresh, VariableSort
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
SERVER = 'job=~"$job", instance=~"$instance"'
RUN = f'{SERVER}, run=~"$run"'
Query = tuple[str, str]
"""PromQL, and the text of its legend."""


def main() -> int:
    """Exit status: 0 written or fresh, 1 stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--to", type=Path, default=FILE, help="another file than dashboard.json")
    wanted = parser.parse_args()
    if wanted.check:
        fresh: bool = wanted.to.is_file() and wanted.to.read_text(encoding="utf-8") == text()
        if not fresh:
            print(
                f"{wanted.to.name} differs from dashboard.py: run `make gen` and commit it", file=sys.stderr
            )
        return 0 if fresh else 1
    wanted.to.write_text(text(), encoding="utf-8")
    return 0


def text() -> str:
    """The dashboard as Grafana imports it."""
    return JSONEncoder(sort_keys=True, indent=1).encode(built().build()) + "\n"


def built() -> dashboard.Dashboard:
    """Variables, then rows of panels, each row under its title."""
    page = (
        dashboard.Dashboard("Steelyard")
        .uid("steelyard")
        .description(
            "A server of batches for training: is it up, does it keep up, is it safe; then run by run."
        )
        .tags(["steelyard"])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(_variable("job", "label_values(steelyard_build_info, job)"))
        .with_variable(_variable("instance", 'label_values(steelyard_build_info{job=~"$job"}, instance)'))
        .with_variable(_variable("run", f"label_values(steelyard_run_step{{{SERVER}}}, run)"))
    )
    numbers = count(1)
    for title, panels in (
        ("Is it up, does it keep up, is it safe?", _first()),
        ("Calls and writes", _serving()),
        ("Room", _room()),
        ("Run $run: does training go on?", _progress()),
        ("Run $run: what is drawn, and what comes back", _learning()),
        ("Who calls", _access()),
    ):
        page = page.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            page = page.with_panel(panel.id(next(numbers)))
    return page


def _first() -> Iterator[stat.Panel]:
    good_is_one = ((None, "red"), (1.0, "green"))
    yield _stat(
        "Takes work", f"min(steelyard_ready{{{SERVER}}})", "bool_yes_no", good_is_one, "What /readyz says."
    )
    yield _stat("Writes succeed", f"min(steelyard_store_healthy{{{SERVER}}})", "bool_yes_no", good_is_one, "")
    yield _stat(
        "Slowest commits (p99)",
        f"max(steelyard:commit_seconds:p99_5m{{{SERVER}}})",
        "s",
        ((None, "green"), (0.1, "orange"), (0.25, "red")),
        "A batch is sent after its draw is durable: trainers feel what prefetch does not hide.",
    )
    yield _stat(
        "Steps closed a second",
        f"sum(steelyard:run_steps:rate5m{{{SERVER}}})",
        "ops",
        ((None, "blue"),),
        "Of all runs: steps of which every loss has come.",
    )
    full = ((None, "green"), (0.7, "orange"), (0.85, "red"))
    yield _stat(
        "Map used",
        f"max(steelyard:map_used:ratio{{{SERVER}}})",
        "percentunit",
        full,
        "Of max_map_size_bytes.",
    )
    yield _stat("Disk used", f"max(steelyard:disk_used:ratio{{{SERVER}}})", "percentunit", full, "")
    yield _stat(
        "Last backup",
        f"time() - min(steelyard_backup_timestamp_seconds{{{SERVER}}})",
        "s",
        ((None, "green"), (26 * 3600.0, "red")),
        "What came since is on one disk alone.",
    )
    yield _stat(
        "Last restore that was verified",
        f"time() - min(steelyard_restore_verified_timestamp_seconds{{{SERVER}}})",
        "s",
        ((None, "green"), (35 * 86400.0, "red")),
        "A backup that nobody has restored may not be one.",
    )
    yield _stat(
        "First certificate ends in",
        f"min(steelyard_certificate_expiry_timestamp_seconds{{{SERVER}}}) - time()",
        "s",
        ((None, "red"), (86400.0, "orange"), (7 * 86400.0, "green")),
        "After it no trainer can connect.",
    )
    yield _stat(
        "Up since", f"time() - min(process_start_time_seconds{{{SERVER}}})", "s", ((None, "blue"),), ""
    )
    yield _stat(
        "Runs, in memory and all",
        f"sum(steelyard_runs_loaded{{{SERVER}}})",
        "none",
        ((None, "blue"),),
        "A run is loaded when it is first asked for.",
        ("all", f"sum(steelyard_runs{{{SERVER}}})"),
    )
    yield _stat(
        "Version",
        f"steelyard_build_info{{{SERVER}}}",
        "none",
        ((None, "blue"),),
        "",
        legend="{{version}}, format {{format}}",
    )


def _serving() -> Iterator[timeseries.Panel]:
    by_code = f"sum by (code) (rate(steelyard_rpc_handled_total{{{SERVER}}}[$__rate_interval]))"
    yield _lines("Calls that ended, by status", "ops", (by_code, "{{code}}"))
    yield _lines("Unary calls, p99", "s", (f"steelyard:rpc_seconds:p99_5m{{{SERVER}}}", "{{method}}"))
    commits = f"sum by (le) (rate(steelyard_store_commit_seconds_bucket{{{SERVER}}}[$__rate_interval]))"
    yield _lines(
        "Commits", "s", *((f"histogram_quantile({q}, {commits})", f"p{100 * q:g}") for q in (0.5, 0.9, 0.99))
    )
    yield _lines(
        "Under way",
        "none",
        (f"steelyard_streams_open{{{SERVER}}}", "trainers' streams of {{instance}}"),
        (f"sum by (method) (steelyard_rpc_in_flight{{{SERVER}}})", "{{method}}"),
        (f"steelyard_store_queue_records{{{SERVER}}}", "records waiting to be committed"),
    )
    yield _lines(
        "Does anything hang?",
        "s",
        (f"steelyard_event_loop_lag_seconds{{{SERVER}}}", "event loop of {{instance}}"),
        (f"steelyard_store_writer_busy_seconds{{{SERVER}}}", "a commit of {{instance}}"),
        (f"steelyard_disk_age_seconds{{{SERVER}}}", "figures of the disk of {{instance}}"),
    )
    yield _lines(
        "Commits that failed",
        "ops",
        (f"rate(steelyard_store_failures_total{{{SERVER}}}[$__rate_interval])", "{{instance}}"),
    )


def _room() -> Iterator[timeseries.Panel]:
    yield _lines(
        "The store",
        "bytes",
        (f"steelyard_store_live_bytes{{{SERVER}}}", "in use"),
        (f"steelyard_store_used_bytes{{{SERVER}}}", "data file, freed pages included"),
        (f"steelyard_store_map_limit_bytes{{{SERVER}}}", "max_map_size_bytes"),
    )
    yield _lines(
        "The disk",
        "bytes",
        (f"steelyard_disk_free_bytes{{{SERVER}}}", "free"),
        (f"steelyard_disk_size_bytes{{{SERVER}}}", "size"),
    )
    yield _lines(
        "Waiting to be written", "bytes", (f"steelyard_store_queue_bytes{{{SERVER}}}", "{{instance}}")
    )
    yield _lines("Memory", "bytes", (f"process_resident_memory_bytes{{{SERVER}}}", "resident, {{instance}}"))
    yield _lines("Open files", "none", (f"process_open_fds{{{SERVER}}}", "{{instance}}"))
    yield _lines(
        "Processor",
        "percentunit",
        (f"rate(process_cpu_seconds_total{{{SERVER}}}[$__rate_interval])", "{{instance}}"),
    )


def _progress() -> Iterator[timeseries.Panel]:
    yield _lines(
        "Steps",
        "none",
        (f"steelyard_run_step{{{RUN}}}", "next to draw, {{run}}"),
        (f"steelyard_run_closed_steps{{{RUN}}}", "reported, {{run}}"),
        (f"steelyard_run_folded_steps{{{RUN}}}", "learned from, {{run}}"),
    )
    yield _lines("Steps closed a second", "ops", (f"steelyard:run_steps:rate5m{{{RUN}}}", "{{run}}"))
    yield _lines("Trainers", "none", (f"steelyard_run_ranks{{{RUN}}}", "{{run}}"))
    yield _lines(
        "Losses taken a second",
        "ops",
        (f"rate(steelyard_run_reported_losses_total{{{RUN}}}[$__rate_interval])", "{{run}}"),
    )
    yield _lines(
        "Records behind the last checkpoint",
        "none",
        (f"steelyard_run_journal_lag_records{{{RUN}}}", "{{run}}"),
    )
    yield _lines(
        "Age of the last checkpoint",
        "s",
        (f"time() - steelyard_run_checkpoint_timestamp_seconds{{{RUN}}}", "{{run}}"),
    )


def _learning() -> Iterator[timeseries.Panel | heatmap.Panel]:
    yield _lines(
        "Losses of the newest closed step",
        "none",
        (f"steelyard_run_loss{{{RUN}}}", "{{run}}, quantile {{quantile}}"),
    )
    yield _lines(
        "How wide is the draw?",
        "percentunit",
        (f"steelyard_run_effective_sample_ratio{{{RUN}}}", "effective sample, {{run}}"),
        (f"steelyard_run_largest_weight_share{{{RUN}}}", "of one example, {{run}}"),
    )
    yield _lines(
        "Examples without a loss yet",
        "percentunit",
        (f"steelyard_run_never_reported_share{{{RUN}}}", "{{run}}"),
    )
    yield _heatmap("Steps that a draw did not know", "steelyard_run_staleness_steps")
    yield _heatmap("Batches drawn before a loss came", "steelyard_run_loss_age_steps")
    yield _lines(
        "How alike are the weights of a batch?",
        "percentunit",
        (f"steelyard_run_batch_weights_effective_ratio{{{RUN}}}", "effective batch, {{run}}"),
        (f"steelyard_run_batch_weights_largest_share{{{RUN}}}", "of one example, {{run}}"),
    )
    yield _lines(
        "Reports refused, late or sent again, a second",
        "ops",
        (
            f"rate(steelyard_run_rejected_reports_total{{{RUN}}}[$__rate_interval])",
            "refused: {{reason}}, {{run}}",
        ),
        (f"rate(steelyard_run_late_reports_total{{{RUN}}}[$__rate_interval])", "late, {{run}}"),
        (f"rate(steelyard_run_duplicate_reports_total{{{RUN}}}[$__rate_interval])", "again, {{run}}"),
        (f"rate(steelyard_run_timed_out_steps_total{{{RUN}}}[$__rate_interval])", "steps given up, {{run}}"),
    )
    yield _lines(
        "Losses that are NaN or infinite, a second",
        "ops",
        (f"rate(steelyard_run_nonfinite_losses_total{{{RUN}}}[$__rate_interval])", "{{run}}"),
    )


def _access() -> Iterator[timeseries.Panel]:
    yield _lines(
        "Calls refused for who calls, a second",
        "ops",
        (
            f"sum by (reason) (rate(steelyard_auth_failures_total{{{SERVER}}}[$__rate_interval]))",
            "{{reason}}",
        ),
    )
    yield _lines(
        "Calls refused for how much was used, a second",
        "ops",
        (
            f"sum by (principal, reason) (rate(steelyard_quota_refused_total{{{SERVER}}}[$__rate_interval]))",
            "{{principal}}: {{reason}}",
        ),
    )
    yield _lines(
        "Backups that failed",
        "none",
        (f"increase(steelyard_backup_failures_total{{{SERVER}}}[1d])", "in a day, {{instance}}"),
    )


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .query(query)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _query(expr: str, legend: str, letter: str = "A") -> prometheus.Dataquery:
    """`letter` tells the queries of a panel apart."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).datasource(SOURCE).ref_id(letter)


def _stat(
    title: str,
    expr: str,
    unit: str,
    colours: tuple[tuple[float | None, str], ...],
    description: str,
    *more: tuple[str, str],
    legend: str = "",
) -> stat.Panel:
    """One figure, coloured by its value: (from that value on, colour). `more`: (legend, PromQL) of others beside it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .height(4)
        .span(4)
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(
            dashboard.ThresholdsConfig().steps([Threshold(value, colour) for value, colour in colours])
        )
        .no_value("none")
        .with_target(_query(expr, legend))
    )
    if legend:
        panel = panel.text_mode(BigValueTextMode.NAME)
    for letter, (text_of, other) in zip(ascii_uppercase[1:], more, strict=False):
        panel = panel.with_target(_query(other, text_of, letter))
    return panel


def _lines(title: str, unit: str, *queries: Query) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(title)
        .datasource(SOURCE)
        .unit(unit)
        .axis_soft_min(0)
        .height(8)
        .span(8)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    for letter, (expr, legend) in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(_query(expr, legend, letter))
    return panel


def _heatmap(title: str, histogram: str) -> heatmap.Panel:
    expr = f"sum by (le) (increase({histogram}_bucket{{{RUN}}}[$__rate_interval]))"
    return (
        heatmap.Panel()
        .title(title)
        .datasource(SOURCE)
        .height(8)
        .span(8)
        .with_target(_query(expr, "{{le}}").format(PromQueryFormat.HEATMAP))
    )


if __name__ == "__main__":
    sys.exit(main())
