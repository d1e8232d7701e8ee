"""Draws, mixes and weighers that do not go together: the message says why, and what goes instead."""

from __future__ import annotations

from steelyard import weigh
from steelyard_server.policies.columns import SERVED
from steelyard_server.policies.draw import Draw
from steelyard_server.policies.mix import Mix

HANDS_ON = "infobatch_rescale"
"""The weigh rule that hands on what a draw gives."""


def double_counted(draw: Draw, rule: weigh.Rule) -> str | None:
    """Why the two would count one quantity twice; None where they do not."""
    through = {column.signal: column.name for column in draw.derived if column.signal != SERVED}
    drawn = {**{signal: f"each reported {signal}" for signal in draw.listens}, **through}
    weighed = [*(["loss"] if rule.reads == "losses" else []), *rule.signals]
    for signal in weighed:
        if signal not in drawn:
            continue
        if signal == "loss":
            return (
                f"the draw reads {drawn[signal]} and the weigher reads the losses again, so a high "
                "loss would count twice; draw by 'shuffle' and weigh by the losses, or draw by them and weigh by "
                "'uniform' or 'importance'"
            )
        return (
            f"the draw {draw.method!r} and the weigher {rule.method!r} both read the signal {signal!r}, which would "
            "count twice; draw by 'shuffle', or weigh by 'uniform' or 'importance'"
        )
    # What a rule calls its group parts the batch; it is no quantity.
    quantities = set(rule.columns) - {getattr(rule, "group", None)}
    for column in draw.static:
        if column in quantities:
            return (
                f"the draw {draw.method!r} and the weigher {rule.method!r} both read the column {column!r}, which "
                "would count twice; draw by 'shuffle', or weigh by 'uniform' or 'importance'"
            )
    return None


def mixed_twice(mix: Mix | None, rule: weigh.Rule) -> str | None:
    """Why groups would have their mass by what the rule weighs by again; None where they do not.

    A draw by the losses within the groups of a mix by losses is no such case: it compares a group's examples with each
    other alone, and leaves the groups their masses.
    """
    if mix is None:
        return None
    weighs_by = {*rule.signals, *rule.columns, *(["loss"] if rule.reads == "losses" else [])}
    twice = [name for name in (*mix.signals, *mix.columns) if name in weighs_by]
    if not twice:
        return None
    return (
        f"mix {mix.method!r} gives groups their mass by {twice[0]!r} and weigher {rule.method!r} weighs by it "
        "again, so it would count twice; keep the mix and weigh by 'uniform' or 'importance', or keep the weigher "
        "and mix by 'static' or 'temperature' (a draw by it within the groups is no second count: it leaves "
        "them their mass)"
    )


def weights_lost(draw: Draw, rule: weigh.Rule) -> str | None:
    """Why weights of the draw's own would not reach the objective, or are asked for in vain; None where they do."""
    hands_on = rule.reads == "draw" and not rule.columns
    if draw.gives_weights and not hands_on:
        return (
            f"draw {draw.method!r} gives weights that make good for what it leaves out, and weigh rule {rule.method!r} "
            f"would not hand them on, so the objective would be biased; weigh by {HANDS_ON!r}"
        )
    if rule.method == HANDS_ON and not draw.gives_weights:
        return (
            f"{HANDS_ON!r} hands on the weights that the draw gives, and draw {draw.method!r} gives none here; "
            "draw by 'infobatch' with rescale, or weigh by 'uniform'"
        )
    return None
