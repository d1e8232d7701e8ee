"""The token that all ranks of one launch of the training job share.

The first join of a new token begins an attempt: the run goes back to the step that the trainers start from, and the
streams of older attempts end. So ranks of one launch must agree on the token, and two launches must not.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping

from steelyard.errors import InvalidArgument


def random_token() -> str:
    """A token that no other launch has. One rank makes it and hands it round."""
    return uuid.uuid4().hex


def from_environment(environment: Mapping[str, str]) -> str | None:
    """The token that the launcher's variables spell, None where there is no known launcher.

    torchelastic (torchrun): run id, restart count, rendezvous address and port. With a static rendezvous the run id is
    "none" unless --rdzv-id is given, so two launches one after the other on the same address and port spell the same
    token and the second goes on within the first's attempt; give --rdzv-id, or --standalone, or pass a token.
    Slurm: job, job step and restart count.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
        return "torchelastic:" + ":".join(environment.get(name, "") for name in names)
    if "SLURM_JOB_ID" in environment:
        job, *counts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return ":".join(["slurm", environment[job], *(environment.get(name, "0") for name in counts)])
    return None


def resolve(
    attempt: str | None,
    *,
    world_size: int,
    replica: int = 0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """The token to join with: the one given, a fresh one for a trainer that is alone, else the launcher's.

    InvalidArgument: an empty token, or none given and no launcher that spells one.
    """
    if attempt is not None:
        if not isinstance(attempt, str) or not attempt:
            raise InvalidArgument(f"attempt: expected a string that is not empty, got {attempt!r}")
        return attempt
    if world_size == 1 and replica == 0:
        return random_token()
    token = from_environment(os.environ if environment is None else environment)
    if token is None:
        raise InvalidArgument(
            f"attempt: expected a token, because {world_size} ranks (replica {replica} here) of one launch must share "
            "it, and neither torchelastic's nor Slurm's variables are set to make one from. Pass the same string on "
            "every rank and another one at every launch: let one rank call steelyard.attempt.random_token() and hand "
            "it round"
        )
    return token
