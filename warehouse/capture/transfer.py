"""Brings tensors to the host without holding up the device."""

from typing import Any

import torch
from torch import Tensor

from warehouse.capture.hooks import LayerTensors


class Transfer:
    """Copies a layer's tensors to host memory.

    On CUDA the copies run on a stream of their own, into pinned memory, while the model goes on;
    whoever reads them first waits for the event. On a CPU there is nothing to copy; other devices
    copy at once.

    Args:
        device: the model's device.
    """

    def __init__(self, device: torch.device | str):
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def __call__(self, tensors: LayerTensors) -> tuple[LayerTensors, Any]:
        """Copy to the host.

        Returns:
            The tensors on the host, and the event to wait for (None where they are there already).
        """
        if self._device.type == "cpu":
            return tensors, None
        if self._stream is None:
            attention = None if tensors.attention is None else tensors.attention.cpu()
            return LayerTensors(
                tensors.layer, {s: t.cpu() for s, t in tensors.sites.items()}, attention
            ), None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        done: dict[int, Tensor] = {}
        with torch.cuda.stream(self._stream):
            sites = {site: self._copy(tensor, done) for site, tensor in tensors.sites.items()}
            attention = None if tensors.attention is None else self._copy(tensors.attention, done)
            event = torch.cuda.Event()
            event.record(self._stream)
        return LayerTensors(tensors.layer, sites, attention), event

    def _copy(self, tensor: Tensor, done: dict[int, Tensor]) -> Tensor:
        if id(tensor) not in done:
            if self._stream is not None:
                tensor.record_stream(self._stream)
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            done[id(tensor)] = host.copy_(tensor, non_blocking=True)
        return done[id(tensor)]
