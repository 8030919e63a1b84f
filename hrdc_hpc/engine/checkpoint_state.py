"""A training state as it is saved: nested dicts, lists and tuples of plain values and whole tensors in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

_PLAIN = (bool, int, float, str, type(None))


def on_host(state: dict[str, Any]) -> dict[str, Any]:
    """Return `state` with every tensor whole and in host memory; copies only what is not so already.

    A view is saved without the rest of its storage; views of the same values of one storage stay views of one. Dicts
    of any kind come back as plain ones. Raises TypeError, naming the key, for what could not be loaded without running
    code: numpy scalars, sets, enums, tensor subclasses, any other object.
    """
    whole: dict[str, Any] = _walk(state, _Once(_whole))
    return whole


class HostCopies:
    """Copies of one state after the other, in the same host memory: pinned for tensors that come from a GPU."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a copy, as `on_host`, that later changes of the tensors do not reach; it overwrites the last one.

        Waits for the GPUs: when it returns the copy is complete.
        """
        old, self._buffers = iter(self._buffers), []
        devices: set[torch.device] = set()

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            buffer = _reusable(next(old, None), tensor)
            buffer.copy_(tensor, non_blocking=True)
            self._buffers.append(buffer)
            if tensor.is_cuda:
                devices.add(tensor.device)
            return buffer

        copied: dict[str, Any] = _walk(state, _Once(copy))
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return copied


def tensor_bytes(state: dict[str, Any]) -> int:
    """Bytes of all tensors of a state that `on_host` or `HostCopies` made."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(state)}
    return sum(storages.values())


class _Once:
    """Converts tensors; the same values of the same storage once, however they are viewed."""

    def __init__(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._convert = convert
        self._done: dict[object, torch.Tensor] = {}

    def __call__(self, tensor: torch.Tensor, where: str) -> torch.Tensor:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError(_refusal(where, tensor, "a plain tensor"))
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(_refusal(where, tensor, "a dense tensor with values"))
        dense = tensor.stride() == _layout(tensor)
        values = (
            tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype, tensor.is_conj(),
            tensor.is_neg(), tensor.numel() if dense else (tensor.shape, tensor.stride()),
        )  # fmt: skip
        if values not in self._done:
            self._done[values] = self._convert(tensor.detach())
        whole = self._done[values]
        if not dense or (whole.shape, whole.stride()) == (tensor.shape, tensor.stride()):
            return whole
        return whole.as_strided(tensor.shape, tensor.stride())


def _walk(state: Any, convert: _Once, where: str = "state") -> Any:
    if isinstance(state, torch.Tensor):
        return convert(state, where)
    if type(state) in _PLAIN:
        return state
    if isinstance(state, dict):
        for key in state:
            if type(key) not in (str, int):
                raise TypeError(
                    f"{where}: the key {key!r} is a {type(key).__name__}; a checkpoint holds text and int keys"
                )
        return {key: _walk(value, convert, f"{where}[{key!r}]") for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_walk(value, convert, f"{where}[{number}]") for number, value in enumerate(state))
    raise TypeError(_refusal(where, state, "numbers, text, None, tensors, and dicts, lists and tuples of them"))


def _refusal(where: str, value: object, allowed: str) -> str:
    kind = type(value)
    return (
        f"{where} is a {kind.__module__}.{kind.__qualname__}; a checkpoint holds {allowed}, for loading it must run no"
        " code. Convert it before saving (.item(), float(), list() ...)"
    )


def _layout(tensor: torch.Tensor) -> tuple[int, ...]:
    """Strides of a copy: those of the tensor where it is dense, such as channels_last, else contiguous."""
    return torch.empty_like(tensor, device="meta").stride()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, if it is in host memory and its storage holds nothing else; otherwise a copy."""
    exact = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    as_is = tensor.device.type == "cpu" and exact and tensor.stride() == _layout(tensor)
    if as_is and not tensor.is_conj() and not tensor.is_neg():
        return tensor
    return _reusable(None, tensor).copy_(tensor)


def _reusable(buffer: torch.Tensor | None, tensor: torch.Tensor) -> torch.Tensor:
    """Host memory for a copy: `buffer` if it fits, else new."""
    strides = _layout(tensor)
    wanted = (tensor.shape, tensor.dtype, strides, tensor.is_cuda)
    if buffer is not None and (buffer.shape, buffer.dtype, buffer.stride(), buffer.is_pinned()) == wanted:
        return buffer
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
