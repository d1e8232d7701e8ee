"""Ranks under DistributedDataParallel do what one process does with the whole batch."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import steelyard
from steelyard.testing import server
from steelyard.torch import BatchSampler
from steelyard.weigh import weights

# Two jobs feed all of these: under xdist's loadgroup one worker plays them once.
pytestmark = pytest.mark.xdist_group("ddp")

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE.parent / "golden" / "goldens.json").read_text(encoding="utf-8"))[
    "seed/scalar linupper r=0.4, 2 ranks, equal len"
]
# The goldens' last digit, and what float32 weights leave of numbers up to 6.
SIX_DIGITS = 1e-6
SIZE = 40
STEPS = 4
RULES: dict[str, dict[str, Any]] = {
    "uniform": {"method": "uniform"},
    **{name: {"method": name, "r": 0.4} for name in ("linupper", "quadratic", "extremes", "upper")},
    "importance": {"method": "importance"},
}
SPARSE: dict[str, dict[str, Any]] = {
    # One of the batch: the slice of the other rank weighs nothing at all.
    "top_k": {"method": "top_k", "k": 1},
    # Only the server can: it remembers and draws lots.
    "selective_backprop": {"method": "selective_backprop", "beta": 1.0, "warmup_steps": 1},
    "rho_loss": {"method": "rho_loss", "reference": "quality", "keep": 0.5},
}
GRADED = {"method": "scored", "score": "quality", "sampling": "independent"}
# A whole job, with the imports of every rank, on a busy machine.
DEADLINE = 90.0

_spec = importlib.util.spec_from_file_location("ddp_rank", HERE / "ddp_rank.py")
assert _spec is not None
assert _spec.loader is not None
ddp_rank = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ddp_rank)


def policy(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"weigh": {**RULES, **SPARSE}[name], "batch_size": 8, "seed": 4}
    return {**options, "draw": GRADED} if name == "importance" else options


def cases(world_size: int) -> dict[str, dict[str, Any]]:
    """What is played by name: what create_run takes under "options", and what ddp_rank.py takes."""
    whole = {"size": SIZE, "steps": STEPS}
    uneven = {name: {**policy(name), "batch_size": 7} for name in RULES}
    by_server = {**policy("linupper"), "weigh": {**RULES["linupper"], "where": "server"}}
    if world_size == 3:
        return {f"{name}, uneven": {**whole, "options": options} for name, options in uneven.items()}
    return {
        **{name: {**whole, "options": policy(name)} for name in RULES},
        **{f"{name}, uneven": {**whole, "options": options} for name, options in uneven.items()},
        **{name: {**whole, "options": policy(name)} for name in SPARSE},
        **{f"{name}, uneven": {**whole, "options": {**policy(name), "batch_size": 7}} for name in SPARSE},
        "micro-batches, uniform": {**whole, "options": uneven["uniform"], "micro_batches": 3},
        "micro-batches, linupper": {**whole, "options": uneven["linupper"], "micro_batches": 3},
        "micro-batches, importance": {**whole, "options": uneven["importance"], "micro_batches": 2},
        "linupper, by the server": {**whole, "options": by_server},
        "linupper, by the server, uneven": {**whole, "options": {**by_server, "batch_size": 7}},
        "linupper, in a group of its own": {**whole, "options": policy("linupper"), "own_group": True},
        "resumed": {**whole, "steps": 2, "options": policy("linupper"), "resume": STEPS - 2},
        "golden": {
            "golden": True,
            "options": {"weigh": {**RULES["linupper"], "warmup_steps": 1}, "batch_size": 4},
        },
    }


def play(client: steelyard.Client, world_size: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Plays all cases in one job of `world_size` processes: for each case what came of it on each rank."""
    played = cases(world_size)
    for at, case in enumerate(played.values()):
        case["run"] = f"ranks{world_size}-{at}"
        client.create_run(case["run"], dataset="graded", **case["options"])
    (folder / "cases.json").write_text(json.dumps(played), encoding="utf-8")
    address = client.address
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, str(HERE / "ddp_rank.py"), str(rank), str(world_size)),
                *(str(folder / "init"), address, str(folder / "cases.json"), str(folder / f"{rank}.pt")),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    deadline = time.monotonic() + DEADLINE
    try:
        for process in ranks:
            text, _ = process.communicate(timeout=max(deadline - time.monotonic(), 1.0))
            assert process.returncode == 0, text
    finally:
        for process in ranks:
            process.kill()
            process.wait(10)
    results = [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]
    return {name: [result[name] for result in results] for name in played}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with server(tmp_path_factory.mktemp("server")) as client:
        client.create_dataset("graded", size=SIZE)
        client.set_column("graded", "quality", np.arange(1.0, SIZE + 1))
        yield client


@pytest.fixture(scope="module")
def two(client, tmp_path_factory):
    return play(client, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three(client, tmp_path_factory):
    return play(client, 3, tmp_path_factory.mktemp("three"))


@pytest.fixture
def alone(client, request):
    """What one process makes of a case with the whole batch."""

    def train(options: dict[str, Any]) -> dict[str, Any]:
        name = "alone-" + "".join(one if one.isalnum() else "-" for one in request.node.name)
        run = client.create_run(name, dataset="graded", **options)
        with BatchSampler(run) as sampler:
            return ddp_rank.train(sampler, SIZE, ddp_rank.model(), STEPS)

    return train


def check(results: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """The ranks' gradients are those of one process, and their slices its batches."""
    for result in results:
        assert result["gradients"].shape == (STEPS, ddp_rank.FEATURES + 1)
        torch.testing.assert_close(result["gradients"], expected["gradients"], rtol=1e-6, atol=1e-6)
    parts = len(results[0]["served"]) // STEPS
    for step, ids in enumerate(expected["served"]):
        slices = [result["served"][step * parts : (step + 1) * parts] for result in results]
        assert list(itertools.chain(*itertools.chain(*slices))) == ids


@pytest.mark.parametrize("suffix", ["", ", uneven"])
@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_two_ranks_are_those_of_one_process(two, alone, rule, suffix):
    name = rule + suffix
    check(two[name], alone(cases(2)[name]["options"]))


@pytest.mark.parametrize("suffix", ["", ", uneven"])
@pytest.mark.parametrize("rule", SPARSE)
def test_what_is_left_out_of_a_batch_has_no_part_in_the_gradients(client, two, alone, rule, suffix):
    name = rule + suffix
    check(two[name], alone(cases(2)[name]["options"]))
    run = client.run(f"ranks2-{list(cases(2)).index(name)}")
    weights = [run.batch(step).weight for step in range(STEPS)]
    assert any((weight == 0).any() for weight in weights)
    assert all(weight.sum() == pytest.approx(len(weight)) for weight in weights)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_three_uneven_ranks_are_those_of_one_process(three, alone, rule):
    name = f"{rule}, uneven"
    check(three[name], alone(cases(3)[name]["options"]))


def test_rules_that_weigh_have_gradients_of_their_own(two):
    gradients = [two[name][0]["gradients"][0] for name in RULES]
    for one, other in itertools.combinations(gradients, 2):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("rule", ["uniform", "importance"])
def test_micro_batches_of_two_ranks_add_up_to_the_batch_of_one_process(two, alone, rule):
    name = f"micro-batches, {rule}"
    check(two[name], alone(cases(2)[name]["options"]))


def test_a_rule_that_reads_losses_weighs_each_micro_batch_over_both_ranks(two):
    results = two["micro-batches, linupper"]
    _, inputs, targets = ddp_rank.examples(SIZE).tensors
    network = ddp_rank.model()
    total = torch.zeros((), dtype=torch.float64)
    for index in range(3):
        ids = [one for result in results for one in result["served"][index]]
        losses = (network(inputs[ids]).squeeze(1) - targets[ids]).square()
        weight = weights(losses.detach().numpy(), RULES["linupper"])
        total = total + (torch.from_numpy(weight) * losses).sum() / 7
    total.backward()
    expected = torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None])
    for result in results:
        torch.testing.assert_close(result["gradients"][0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suffix", ["", ", uneven"])
def test_the_server_weighs_as_the_ranks_do(two, suffix):
    by_server, by_ranks = two["linupper, by the server" + suffix], two["linupper" + suffix]
    for one, other in zip(by_server, by_ranks, strict=True):
        torch.testing.assert_close(one["gradients"], other["gradients"], rtol=1e-6, atol=1e-6)
        assert one["served"] == other["served"]


def test_a_group_of_its_own_weighs_as_the_default_group_does(two):
    for one, other in zip(two["linupper, in a group of its own"], two["linupper"], strict=True):
        torch.testing.assert_close(one["gradients"], other["gradients"], rtol=1e-12, atol=1e-12)


def test_both_ranks_join_with_the_token_that_rank_0_made(two):
    tokens = [{result["attempt"] for result in two[name]} for name in ("uniform", "linupper", "resumed")]
    assert all(len(one) == 1 for one in tokens)
    assert len(set.union(*tokens)) == 3


def test_a_job_that_goes_on_from_a_state_repeats_and_skips_nothing(two, alone):
    check(two["resumed"], alone(policy("linupper")))
    assert all(result["attempt"].endswith("/1") for result in two["resumed"])
    assert [result["state"]["step"] for result in two["resumed"]] == [STEPS] * 2


def test_two_ranks_have_the_authors_objective(two):
    burn_in, weighed = zip(*(result["golden"] for result in two["golden"]), strict=True)
    for name, results in (("burnin", burn_in), ("fsdp", weighed)):
        per_rank, gradients = zip(*results, strict=True)
        whole = GOLDEN[f"global_{name}" if name == "burnin" else f"global_after_ddp_mean_{name}"]
        assert per_rank == pytest.approx(GOLDEN[f"per_rank_{name}"], abs=SIX_DIGITS)
        # The loss is linear in the parameter, so the gradient that both ranks apply is the objective.
        assert gradients == pytest.approx([whole] * 2, abs=SIX_DIGITS)
