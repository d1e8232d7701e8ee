"""For tests: real servers, and the contract that every method of one's own has to keep.

with steelyard.testing.server(tmp_path) as client:
    client.create_dataset("d", size=100)

with steelyard.testing.ServerProcess(tmp_path) as process:
    run = process.client().create_run("r", dataset="d", batch_size=8)
    process.kill()
    process.start()     # the same directory and port: sessions go on

from steelyard.testing import method_contract     # a pytest fixture; needs pytest and hypothesis

def test_my_method_keeps_the_contract(method_contract):
    method_contract(MyMethod)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steelyard.testing.servers import ServerProcess, server

if TYPE_CHECKING:
    from steelyard.testing.contract.fixture import method_contract

__all__ = ["ServerProcess", "method_contract", "server"]


def __getattr__(name: str) -> Any:
    # pytest and hypothesis are no dependencies of ours: who asks for the fixture has them.
    if name == "method_contract":
        from steelyard.testing.contract.fixture import method_contract

        return method_contract
    raise AttributeError(f"module 'steelyard.testing' has no attribute {name!r}")
