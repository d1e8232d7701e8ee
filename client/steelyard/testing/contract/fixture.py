"""The pytest fixture. Test files import it by name: from steelyard.testing import method_contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steelyard.testing.contract import check


@pytest.fixture
def method_contract() -> Callable[..., None]:
    """method_contract(config_or_class, family=None, columns=None): see steelyard.testing.contract.check."""
    return check
