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


def test_slurm_tells_job_step_and_requeue_apart():
    tokens = {
        from_environment(SLURM),
        from_environment({**SLURM, "SLURM_STEP_ID": "4"}),
        from_environment({**SLURM, "SLURM_JOB_ID": "18"}),
        from_environment({**SLURM, "SLURM_RESTART_COUNT": "1"}),
    }
    assert len(tokens) == 4


def test_torchelastic_counts_before_slurm_because_it_restarts_within_a_job_step():
    assert from_environment({**ELASTIC, **SLURM}) == from_environment(ELASTIC)


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
