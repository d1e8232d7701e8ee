"""The modules of the faults, in the order of the table. A new one is named here, and nowhere else."""

from tests.robustness.faults import (  # noqa: F401
    clients,
    copies,
    credentials,
    disk,
    kills,
    machine,
    networks,
    overload,
    power_cut,
    rest,
    searches,
    soak,
    strangers,
)
