"""Reads the parameters of a pickled network without running code from the file.

To unpickle such a file, Python imports and calls the classes that it names. Instead, this reader treats a pickle as a
list of instructions. It executes the few instructions that `torch.save` writes, on plain lists, dicts and tuples. The
result holds the parameters of the network; every other object becomes a `Record`. A name from the file is only compared
with known names, never imported.

`torch.load(weights_only=True)` cannot read these files, whatever `torch.serialization.safe_globals` allows: it refuses
classes that are named by a persistent id, as in files from before torch 1.6, and it refuses the entries of an
optimizer's defaultdict. It also needs a list of all names beforehand, and then calls the functions and classes of that
list.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ssd.networks import NETWORKS
from ssd.networks.network import DESCRIPTION

LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch's magic number, in files from before torch 1.6
DTYPES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}


KINDS = {f"{kind.__module__} {kind.__qualname__}": name for name, kind in NETWORKS.items()}  # as a Record names them


class Record:
    """A class, function or object in the file.

    Attributes:
        name: "module name" of the class or function.
        state: the attributes of an object, usually a dict; None for a class or function.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None


class Storage(NamedTuple):
    """A one-dimensional array of numbers in the file.

    Attributes:
        key: its name in the file.
        dtype: dtype of the numbers.
        numel: how many there are.
    """

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


class View(NamedTuple):
    """A tensor whose numbers are not read yet.

    Attributes:
        storage: the numbers.
        offset: index of the first element in the storage.
        size, stride: shape and strides of the tensor, in elements.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_parameters(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the parameters and buffers of a pickled network, or of the network under "model" in a pickled dict.

    Args:
        path: a file of `torch.save`, saved on any device.

    Returns:
        The state dict, on the CPU; with the metadata that a `Network` adds to it, if it is one of `NETWORKS`.

    Raises:
        FileNotFoundError: no such file.
        Exception: of any class, if the file is of another kind, damaged or malicious.
    """
    return (_read_zip if zipfile.is_zipfile(path) else _read_legacy)(path)


def _read_zip(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        if sum(max(info.file_size, info.compress_size) for info in archive.infolist()) > os.path.getsize(path):
            raise ValueError("the zip file is smaller than its entries")
        folder = next((n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("data.pkl")), None)
        if folder is None:
            raise ValueError("a zip file that torch.save did not write")
        tree, _ = _follow(io.BytesIO(archive.read(f"{folder}data.pkl")))
        return _load(tree, lambda storage: archive.read(f"{folder}data/{storage.key}"))


def _read_legacy(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if file.read(len(LEGACY_HEAD)) != LEGACY_HEAD:
            raise ValueError("the file is truncated, or torch.save did not write it")
        for _ in range(2):  # skips the version of the format and the sizes of the machine's integers
            _follow(file)
        tree, storages = _follow(file)
        keys, _ = _follow(file)
        places, place = {}, file.tell()
        for key in keys:  # for each: the number of elements in 8 bytes, then the elements
            if int.from_bytes(data[place : place + 8], "little") != storages[key].numel:
                raise ValueError(f"storage {key} does not have the size that its tensors state")
            places[key], place = place + 8, place + 8 + storages[key].nbytes
        return _load(tree, lambda storage: data[places[storage.key] : places[storage.key] + storage.nbytes])


def _follow(pickled: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """Executes the next pickle of a file.

    Returns:
        The object, and the storages that it uses, by their keys.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int | None, Any] = {}
    storages: dict[str, Storage] = {}

    def take(n: int) -> list[Any]:
        items = stack[len(stack) - n :]
        del stack[len(stack) - n :]
        return items

    for opcode, value, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO":
                pass
            case "NONE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(value)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(take(len(stack) - marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(take(int(opcode.name[-1]))))
            case "APPEND" | "APPENDS":
                items = take(1 if opcode.name == "APPEND" else len(stack) - marks.pop())
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = take(2 if opcode.name == "SETITEM" else len(stack) - marks.pop())
                if isinstance(stack[-1], dict):
                    stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(Record(str(value)))  # "module name"
            case "NEWOBJ":
                cls, _ = take(2)
                stack.append(Record(cls.name))
            case "REDUCE":
                function, arguments = take(2)
                stack.append(_reduce(function.name, arguments))
            case "BUILD":
                (state,) = take(1)
                if isinstance(stack[-1], Record):
                    stack[-1].state = state
            case "BINPERSID":
                kind, what, *rest = stack.pop()
                if kind == "module":  # before torch 1.6: a class, its file and its source
                    stack.append(what)
                elif kind == "storage":
                    key, _, numel, *view = rest
                    if any(part is not None for part in view) or type(key) is not str or type(numel) is not int:
                        raise ValueError("the description of a storage differs from torch.save's")
                    storages[key] = Storage(key, DTYPES[what.name.rpartition(" ")[2]], numel)
                    stack.append(storages[key])
                else:
                    raise ValueError(f"unknown persistent id {kind!r}")
            case "STOP":
                return stack.pop(), storages
            case _:
                raise ValueError(f"opcode {opcode.name} is not one that torch.save writes")
    raise ValueError("the pickle has no end")


def _reduce(function: str, arguments: tuple[Any, ...]) -> Any:
    """The result of calling a function: computed for the known ones, otherwise a `Record`."""
    match function:
        case "torch._utils _rebuild_tensor" | "torch._utils _rebuild_tensor_v2":
            return View(*arguments[:4])
        case (
            "torch._utils _rebuild_parameter"
            | "torch._utils _rebuild_parameter_with_state"
            | "torch.nn.parameter Parameter"  # torch 0.4
        ):
            return arguments[0]
        case "collections OrderedDict":
            return dict(*arguments)
        case "__builtin__ set":  # builtins.set in protocol 2
            return set(*arguments)
        case _:
            return Record(function)


def _load(tree: Any, read: Callable[[Storage], bytes]) -> dict[str, Tensor]:
    """Reads the tensors of a network, each storage once."""
    values: dict[Storage, Tensor] = {}
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    metadata: dict[str, dict[str, Any]] = {}
    network = tree["model"] if isinstance(tree, dict) and "model" in tree else tree
    for name, view in _walk(network, "", set(), metadata):
        storage, offset, size, stride = view
        numbers = (storage.numel, offset, *size, *stride)
        if not isinstance(storage, Storage) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"the description of {name} differs from torch.save's")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 in size or last >= storage.numel or prod(size) > storage.numel:
            raise ValueError(f"{name} of shape {size} exceeds its {storage.numel} values")
        if storage not in values:
            content = bytearray(read(storage))
            if len(content) != storage.nbytes:
                raise ValueError(f"{name} has {len(content)} bytes instead of {storage.nbytes}")
            values[storage] = torch.frombuffer(content, dtype=storage.dtype)
        tensors[name] = values[storage].as_strided(size, stride, offset)
    if not tensors:
        raise ValueError("the file contains no network")
    tensors._metadata = metadata  # type: ignore[attr-defined]  # as torch adds it to a state dict
    return tensors


def _walk(module: Any, prefix: str, seen: set[int], metadata: dict[str, dict[str, Any]]) -> Iterator[tuple[str, View]]:
    """Yields the tensors of a module or of a state dict, with their names in the state dict; adds to its metadata."""
    if id(module) in seen:  # a module that contains itself would be walked forever
        return
    seen.add(id(module))
    state = module.state if isinstance(module, Record) else {"_parameters": module}
    if not isinstance(state, dict):
        return
    if isinstance(module, Record) and module.name in KINDS:
        described = {"network": state.get("name", KINDS[module.name]), "config": state.get("config")}
        metadata[prefix.removesuffix(".")] = {DESCRIPTION: described}
    for group in ("_parameters", "_buffers", "_modules"):
        members = state.get(group)
        for name, value in members.items() if isinstance(members, dict) else ():
            if isinstance(value, View):
                if name not in state.get("_non_persistent_buffers_set", ()):
                    yield f"{prefix}{name}", value
            elif group == "_modules":
                yield from _walk(value, f"{prefix}{name}.", seen, metadata)
