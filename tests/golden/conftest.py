"""The transcripts are played on the plain kernels and on the compiled ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from steelyard_server import kernel_cache
from steelyard_server.core import kernels
from steelyard_server.core.kernels import plain


@pytest.fixture(scope="module", params=["numpy", "compiled"], autouse=True)
def both_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    before = kernels.active
    if request.param == "compiled":
        kernel_cache.load(kernel_cache.folder())
    else:
        kernels.use(plain)
    yield
    kernels.use(before)
