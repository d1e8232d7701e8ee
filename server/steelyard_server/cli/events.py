"""steelyard events: what changed a run, in order."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import typer

from steelyard import events as kinds
from steelyard_server.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT,
    Address,
    Ca,
    Cert,
    Key,
    RunName,
    Timeout,
    TokenFile,
    connected,
    finite,
)

_SHOWN = 8
"""Values of an array that a line shows."""

FromStep = Annotated[
    int | None,
    typer.Option(
        "--from", min=0, metavar="STEP", help="Begin with the draw of this step; else with all kept."
    ),
]
ToStep = Annotated[
    int | None, typer.Option("--to", min=0, metavar="STEP", help="End before the draw of this step.")
]
AsLines = Annotated[
    bool,
    typer.Option(
        "--json", help="Print a JSON object a line, all values in full; what is not a finite number is null."
    ),
]


def events(
    run: RunName,
    from_step: FromStep = None,
    to_step: ToStep = None,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsLines = False,
) -> None:
    """Print the events of a run's journal: batches drawn, losses reported, and all else that changed it."""
    form = as_object if as_json else as_line
    with connected(address, timeout, ca, cert, key, token_file) as client:
        for event in client.run(run).events(from_step, to_step):
            typer.echo(form(event))


def as_object(event: kinds.Event) -> str:
    """The event as one line of JSON, with every value of its arrays. Digests are hexadecimal: they are too long for the
    numbers of other languages."""
    values = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    if isinstance(event, kinds.RunCreated):
        values["spec"] = {
            field.name: getattr(event.spec, field.name) for field in dataclasses.fields(event.spec)
        }
    if isinstance(event, kinds.BatchDrawn):
        values["digest"] = f"{event.digest:016x}"
    record = values.pop("record")
    plain = {"record": record, "event": name_of(event), **_plain(values)}
    return json.dumps(finite(plain), allow_nan=False)


def as_line(event: kinds.Event) -> str:
    """The event as one line for a reader."""
    line = f"{event.record:>8}  {name_of(event):<16}  {_WORDS[type(event)](event)}"
    return line.replace("\n", " ").rstrip()


def name_of(event: kinds.Event) -> str:
    """As the wire names it: batch_drawn."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def _run_created(event: kinds.RunCreated) -> str:
    spec = event.spec
    return (
        f"{spec.name} on {spec.dataset}, {event.dataset_size} examples: batch_size {spec.batch_size}, "
        f"seed {spec.seed}, staleness {spec.staleness}, {_policy(spec)}"
    )


def _policy_changed(event: kinds.PolicyChanged) -> str:
    return _policy(event) if event.step is None else f"from step {event.step}: {_policy(event)}"


def _policy(of: kinds.RunSpec | kinds.PolicyChanged) -> str:
    mix = "" if of.mix.get("method") == "none" else f" mix {_config(of.mix)},"
    return f"draw {_config(of.draw)},{mix} weigh {_config(of.weigh)}"


def _column_set(event: kinds.ColumnSet) -> str:
    return f"{event.column} of {_array(event.ids)}: {_array(event.values)}"


def _batch_drawn(event: kinds.BatchDrawn) -> str:
    probability = event.probability
    same = len(probability) and (probability == probability[0]).all()
    law = f"all {probability[0]:.6g}" if same else _array(probability)
    weight = "" if (event.weight == 1).all() else f" weight {_array(event.weight)};"
    return (
        f"step {event.step}: ids {_array(event.ids)}; probability {law};{weight} state {event.state_version}; "
        f"digest {event.digest:016x}"
    )


def _losses_reported(event: kinds.LossesReported) -> str:
    count = len(next(iter(event.signals.values()), ()))
    return (
        f"step {event.step}, positions {event.offset}..{event.offset + count - 1}: {_signals(event.signals)}"
    )


def _signals_observed(event: kinds.SignalsObserved) -> str:
    when = "for the next draw" if event.step is None else f"with step {event.step}"
    return f"{when}, ids {_array(event.ids)}: {_signals(event.signals)}"


def _attempt_began(event: kinds.AttemptBegan) -> str:
    who = (
        f"{event.attempt}, world_size {event.world_size},"
        if event.attempt
        else "the owner's, with no trainer"
    )
    return f"{who} goes on from step {event.start_step}"


def _bookmarked(event: kinds.Bookmarked) -> str:
    return f"{event.bookmark} is step {event.step}" if event.step is not None else f"{event.bookmark} is gone"


_WORDS: Mapping[type[Any], Callable[[Any], str]] = {
    kinds.RunCreated: _run_created,
    kinds.PolicyChanged: _policy_changed,
    kinds.ColumnSet: _column_set,
    kinds.DatasetGrown: lambda event: f"{event.size} examples",
    kinds.IdsRetired: lambda event: f"ids {_array(event.ids)}",
    kinds.BatchDrawn: _batch_drawn,
    kinds.LossesReported: _losses_reported,
    kinds.SignalsObserved: _signals_observed,
    kinds.StepClosed: lambda event: f"step {event.step}, by {event.reason}",
    kinds.AttemptBegan: _attempt_began,
    kinds.Bookmarked: _bookmarked,
}


def _config(values: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in values.items() if name != "method"}
    return " ".join(
        [str(values.get("method")), *(f"{name}={_value(value)}" for name, value in sorted(rest.items()))]
    )


def _value(value: Any) -> str:
    """A parameter, numbers with six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)


def _signals(signals: kinds.Signals) -> str:
    return "; ".join(f"{name} {_array(values)}" for name, values in signals.items())


def _array(values: Any) -> str:
    first = values[:_SHOWN].tolist()
    shown = " ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in first)
    return shown if len(values) <= _SHOWN else f"{shown} ... ({len(values)})"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value
