"""Losses on their way to host memory, without a wait of the thread that computes them."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch


class HostCopy:
    """A copy of a tensor of n numbers, started when this is made; numpy() is float32[n].

    The copy is of the values of that moment: what the caller does to the tensor later does not reach it. From a
    CUDA device it goes to pinned memory on a stream of its own, beside the training; from other devices it is made by
    numpy(), in whichever thread calls it.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        # The source is kept until the copy has arrived, so that its memory is not given to another tensor meanwhile.
        self._source = tensor.detach().to(torch.float32, copy=True)
        self._arrived: torch.cuda.Event | None = None
        if self._source.device.type == "cuda":
            self._start()

    @property
    def waits(self) -> bool:
        """Whether numpy() may wait for a device."""
        return self._source.device.type != "cpu"

    def numpy(self) -> npt.NDArray[np.float32]:
        """The values, when they have arrived."""
        if self._arrived is None:
            return self._source.cpu().numpy()
        self._arrived.synchronize()
        return self._host.numpy()

    def _start(self) -> None:
        device = self._source.device
        self._host = torch.empty(self._source.shape, dtype=torch.float32, pin_memory=True)
        # `blocking`: the thread that waits for it sleeps instead of spinning.
        self._arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        side = _side_stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            self._host.copy_(self._source, non_blocking=True)
            self._arrived.record(side)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
