"""The token that all ranks of a launch share."""

import pytest

from steelyard.attempt import from_environment, random_token, resolve
from steelyard.errors import InvalidArgument

ELASTIC = {
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}
SLURM = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "3"}


def test_a_given_token_is_taken_as_it_is():
    assert resolve("launch-7", world_size=4, environment=ELASTIC) == "launch-7"


def test_a_trainer_that_is_alone_gets_a_token_of_its_own_each_time():
    assert resolve(None, world_size=1, environment=ELASTIC) != resolve(
        None, world_size=1, environment=ELASTIC
    )


def test_ranks_of_one_launch_agree_and_a_restart_differs():
    first = resolve(None, world_size=4, environment={**ELASTIC, "RANK": "0"})
    assert first == resolve(None, world_size=4, environment={**ELASTIC, "RANK": "3"})
    assert first != resolve(None, world_size=4, environment={**ELASTIC, "TORCHELASTIC_RESTART_COUNT": "3"})


def one_node(folder, **changes):
    """The variables of a rank that torchrun starts on one node, as it was told no run id."""
    names = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "GROUP_WORLD_SIZE": "1"}
    error_file = (
        f"/tmp/torchelastic_x/{folder}/attempt_{changes.get('TORCHELASTIC_RESTART_COUNT', 0)}/0/error.json"
    )
    return {**ELASTIC, **names, "WORLD_SIZE": "4", "TORCHELASTIC_ERROR_FILE": error_file, **changes}


def test_two_launches_of_torchrun_on_one_node_differ_also_with_the_same_run_id_and_port():
    tokens = {
        from_environment(one_node("none_a")),
        from_environment(one_node("none_b")),
        from_environment(one_node("none_a", TORCHELASTIC_RESTART_COUNT="1")),
        from_environment(one_node("none_a", TORCHELASTIC_RUN_ID="job")),
        from_environment(one_node("none_b", TORCHELASTIC_RUN_ID="job")),
    }
    assert len(tokens) == 5
    assert None not in tokens
    other_rank = "/tmp/torchelastic_x/none_a/attempt_0/3/error.json"
    assert from_environment(one_node("none_a")) == from_environment(
        one_node("none_a", TORCHELASTIC_ERROR_FILE=other_rank, RANK="3")
    )


def test_a_launch_on_several_nodes_without_a_run_id_of_its_own_spells_no_token():
    several = one_node("none_a", GROUP_WORLD_SIZE="2")
    assert from_environment(several) is None
    with pytest.raises(InvalidArgument, match="torchrun on several nodes needs --rdzv-id"):
        resolve(None, world_size=4, environment=several)
    named = {**several, "TORCHELASTIC_RUN_ID": "job-17"}
    assert from_environment(named) == from_environment(
        {**named, "TORCHELASTIC_ERROR_FILE": "/tmp/y/z/attempt_0/0/e"}
    )


def test_tokens_of_torchelastic_name_the_run_and_the_restart_and_fit_the_wire():
    token = from_environment(
        one_node("none_" + "a" * 300, TORCHELASTIC_RUN_ID="job", TORCHELASTIC_RESTART_COUNT="2")
    )
    assert token is not None
    assert token.startswith("torchelastic:job:2:")
    assert len(token) < 64


def test_slurm_tells_job_step_and_requeue_apart():
    tokens = {
        from_environment(SLURM),
        from_environment({**SLURM, "SLURM_STEP_ID": "4"}),
        from_environment({**SLURM, "SLURM_JOB_ID": "18"}),
        from_environment({**SLURM, "SLURM_RESTART_COUNT": "1"}),
    }
    assert len(tokens) == 4


def test_torchelastic_counts_before_slurm_because_it_restarts_within_a_job_step():
    both = {**ELASTIC, **SLURM}
    assert from_environment(both) != from_environment({**both, "TORCHELASTIC_RESTART_COUNT": "3"})
    assert from_environment(both) != from_environment({**both, "SLURM_RESTART_COUNT": "1"}), "queued again"
    other_node = {**both, "SLURM_STEP_ID": "4"}
    assert from_environment(both) == from_environment(other_node), (
        "agents may be started by a step for each node"
    )


def test_without_a_launcher_several_ranks_are_told_to_share_one():
    with pytest.raises(InvalidArgument, match="4 ranks.*Pass the same string on every rank"):
        resolve(None, world_size=4, environment={})
    with pytest.raises(InvalidArgument, match="replica 1"):
        resolve(None, world_size=1, replica=1, environment={})


@pytest.mark.parametrize("token", ["", 7])
def test_a_token_is_a_string_that_is_not_empty(token):
    with pytest.raises(InvalidArgument, match="attempt: expected a string"):
        resolve(token, world_size=1)


def test_random_tokens_differ():
    assert random_token() != random_token()
