"""The token that all ranks of one launch of the training job share.

The first join of a new token begins an attempt: the run goes back to the step that the trainers start from, and the
streams of older attempts end. So ranks of one launch must agree on the token, and two launches must not.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import PurePath

from steelyard.errors import InvalidArgument


def random_token() -> str:
    """A token that no other launch has. One rank makes it and hands it round."""
    return uuid.uuid4().hex


def from_environment(environment: Mapping[str, str]) -> str | None:
    """The token that the launcher's variables spell, None where none is known that tells its launches apart.

    torchelastic (torchrun): run id, restart count, rendezvous address and port, world size; on one node also the folder
    that torchrun makes for each launch. Several nodes have no such thing in common, so there a launch that was given no
    --rdzv-id (its run id is "none") spells no token. Slurm: job, job step and restart count.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _torchelastic(environment)
    if "SLURM_JOB_ID" in environment:
        job, *counts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return ":".join(["slurm", environment[job], *(environment.get(name, "0") for name in counts)])
    return None


def _torchelastic(environment: Mapping[str, str]) -> str | None:
    run_id, count = environment["TORCHELASTIC_RUN_ID"], environment.get("TORCHELASTIC_RESTART_COUNT", "")
    launch = _launch_folder(environment)
    if run_id in ("", "none") and not launch:
        return None
    # A Slurm job that is queued again keeps its id, which may be the run id. Not the job step: nodes may differ in it.
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    rest = json.dumps([launch, *(environment.get(name, "") for name in names)])
    return f"torchelastic:{run_id}:{count}:{hashlib.blake2b(rest.encode(), digest_size=8).hexdigest()}"


def _launch_folder(environment: Mapping[str, str]) -> str:
    """The folder of this launch and restart, the same for all ranks of a node; nothing where there are other nodes."""
    if environment.get("GROUP_WORLD_SIZE") != "1":
        return ""
    # <log folder>/<run id>_<random>/attempt_<restart>/<local rank>/error.json
    return str(PurePath(environment.get("TORCHELASTIC_ERROR_FILE", "")).parent.parent).strip(".")


def resolve(
    attempt: str | None,
    *,
    world_size: int,
    replica: int = 0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """The token to join with: the one given, a fresh one for a trainer that is alone, else the launcher's.

    InvalidArgument: an empty token, or none given and no launcher that spells one of its own for each launch.
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
            "it, and no launcher's variables spell one: neither Slurm's are set, nor torchelastic's with a run id of "
            "its own (torchrun on several nodes needs --rdzv-id, another one for each launch). Pass the same string "
            "on every rank and another one at every launch: let one rank call steelyard.attempt.random_token() and "
            "hand it round"
        )
    return token
