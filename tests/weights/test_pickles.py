"""Files that want code to be run: nothing of them is, and what is read is the network alone."""

import pickle
import sys
import types
import zipfile
from struct import pack

import pytest
import torch

from ssd import load_weights
from ssd.weights.pickles import LEGACY_HEAD, read_parameters

VALUES = torch.arange(6.0)


def push(*values) -> bytes:
    """The instructions that put values on the stack; bytes are instructions already."""
    return b"".join(map(_push, values))


def _push(value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return b"X" + pack("<I", len(value)) + value.encode()
    if isinstance(value, tuple):
        return b"(" + push(*value) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(push(*entry) for entry in value.items()) + b"u"
    return pickle.dumps(value, 2)[2:-1]


def name(module: str, function: str) -> bytes:
    return f"c{module}\n{function}\n".encode()


def call(module: str, function: str, *arguments) -> bytes:
    return name(module, function) + push(arguments) + b"R"


FLOATS = name("torch", "FloatStorage")


def storage(kind="storage", dtype=FLOATS, key="0", numel=6, *more) -> bytes:
    return push((kind, dtype, key, "cpu", numel, *more)) + b"Q"


WHOLE = storage()


def tensor(storage=WHOLE, offset=1, size=(2, 2), stride=(2, 1)) -> bytes:
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, False, hooks)


def entries(**values) -> bytes:
    return push(values)


def file_of(path, tree: bytes, legacy: bool = False, content: bytes = VALUES.numpy().tobytes(), **zip_options):
    """As torch.save would write it, around any instructions."""
    if legacy:
        head = LEGACY_HEAD + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
        path.write_bytes(head + b"\x80\x02" + tree + b"." + pickle.dumps(["0"], 2) + pack("<q", 6) + content)
    else:
        with zipfile.ZipFile(path, "w", **zip_options) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + tree + b".")
            archive.writestr("archive/data/0", content)
    return path


@pytest.fixture
def fired(monkeypatch, tmp_path):
    """A module with everything that an unpickler could call by mistake; the list tells what was."""
    fired = []
    trap = types.ModuleType("trap")

    class Trap:
        def __new__(cls, *arguments):
            fired.append("__new__")
            return super().__new__(cls)

        def __setstate__(self, state):
            fired.append("__setstate__")

        def __setitem__(self, key, value):
            fired.append("__setitem__")

        append = extend = __call__ = lambda self, *arguments: fired.append("called")

    trap.Trap = Trap
    trap.fire = lambda *arguments: fired.append("fire")
    monkeypatch.setitem(sys.modules, "trap", trap)
    monkeypatch.chdir(tmp_path)
    yield fired
    assert fired == []
    assert not (tmp_path / "made").exists()


TRAP = name("trap", "Trap") + b")\x81"  # NEWOBJ
HARMFUL = {
    "reduce": call("trap", "fire", "x"),
    "os.system": call("os", "system", "touch made"),
    "posix.system": call("posix", "system", "touch made"),
    "eval": call("builtins", "eval", "open('made', 'w')"),
    "__builtin__": call("__builtin__", "eval", "open('made', 'w')"),
    "getattr": call("builtins", "getattr", name("trap", "Trap"), "mro"),
    "an object called": TRAP + push(("y",)) + b"R",
    "torch.load": call("torch", "load", "harmful.pt"),
    "torch.hub": call("torch.hub", "load_state_dict_from_url", "file:harmful.pt"),
    "copyreg": call("copyreg", "_reconstructor", name("trap", "Trap"), name("builtins", "object"), b"N"),
    "copyreg.add_extension": call("copyreg", "add_extension", "trap", "fire", 7),
    "import": name("this", "s"),
    "newobj": TRAP,
    "build": TRAP + entries(x=1) + b"b",
    "build slots": TRAP + push((None, {"__class__": name("trap", "Trap")})) + b"b",
    "build a class": name("trap", "Trap") + entries(fire=1) + b"b",
    "build a function": name("torch._utils", "_rebuild_tensor_v2") + push((None, {"__code__": "x"})) + b"b",
    "build a dict": call("collections", "OrderedDict") + push({"__class__": name("trap", "Trap"), "items": 1}) + b"b",
    "build a tensor": tensor() + push((None, {"grad_fn": name("trap", "fire")})) + b"b",
    "items of an object": TRAP + push(b"(", "a", "b", b"u", "a", "b", b"s"),
    "an object as a list": TRAP + push(b"(", "a", "b", b"e", "a", b"a"),
    "parameter": call("torch.nn.parameter", "Parameter", TRAP),
    "class of old files": push(("module", name("trap", "Trap"), "trap.py", "made()")) + b"Q)\x81",
    "memo far out": push(1) + b"r\xff\xff\xff\xff",
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("attack", HARMFUL)
def test_nothing_is_run(tmp_path, fired, attack, legacy):
    harmless = entries(model={"weight": tensor()}, harm=HARMFUL[attack])
    state = read_parameters(file_of(tmp_path / "harmful.pt", harmless, legacy))
    assert list(state) == ["weight"]
    assert torch.equal(state["weight"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert "this" not in sys.modules
    with pytest.raises(ValueError, match=r"harmful\.pt"):
        load_weights(file_of(tmp_path / "harmful.pt", HARMFUL[attack], legacy))


REFUSED = {
    "STACK_GLOBAL": push("os", "system") + b"\x93",
    "INST": b"(" + push("touch made") + b"ios\nsystem\n",
    "OBJ": b"(" + name("os", "system") + push("touch made") + b"o",
    "NEWOBJ_EX": name("trap", "Trap") + b")}\x92",
    "EXT1": b"\x82\x07",
    "EXT2": b"\x83\x07\x00",
    "EXT4": b"\x84\x07\x00\x00\x00",
    "PERSID": b"Pstorage\n",
    "NEXT_BUFFER": b"\x97",
    "BINUNICODE8": b"\x8d" + pack("<Q", 2**62),
    "BINBYTES8": b"\x8e" + pack("<Q", 2**40),
    "BYTEARRAY8": b"\x96" + pack("<Q", 2**40),
    "LONG4": b"\x8b" + pack("<i", 2**31 - 1),
    "text beyond the end": b"X\xff\xff\xff\xff",
    "nothing to pop": b"\x85R",
    "no mark": b"u",
    "a call of no name": push(1) + b")R",
    "a dict as a key": b"}}" + push("x") + b"s",
    "unknown memo": b"h\x07",
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_other_instructions_are_refused(tmp_path, fired, monkeypatch, case, legacy):
    monkeypatch.setitem(sys.modules["copyreg"]._inverted_registry, 7, ("trap", "fire"))
    tree = entries(model={"weight": tensor()}, harm=REFUSED[case])
    with pytest.raises(ValueError, match=r"harmful\.pt: cannot be read as a checkpoint"):
        load_weights(file_of(tmp_path / "harmful.pt", tree, legacy))


WRONG_STORAGES = {
    "persistent id of no tuple": push(5) + b"Q",
    "another kind": storage("trap"),
    "an object for a kind": storage(TRAP),
    "of a function": storage(dtype=name("os", "system")),
    "of no name": storage(dtype="torch FloatStorage"),
    "without a key": storage(key=0),
    "outside of the folder": storage(key="../../../etc/passwd"),
    "missing": storage(key="1"),
    "too many for any memory": storage(numel=2**50),
    "more than int64": storage(numel=2**70),
    "less than nothing": storage(numel=-6),
    "less than is there": storage(numel=5),
    "text for a number": storage(numel="6"),
    "of another type": storage(dtype=name("torch", "DoubleStorage")),
    "a view": storage("storage", FLOATS, "0", 6, ("1", 0, 6)),
    "a tuple": push(("0", 4, 6)),
}
WRONG_SHAPES = {
    "offset beyond": {"offset": 3},
    "stride beyond": {"stride": (5, 1)},
    "stride beyond int64": {"size": (3, 1), "stride": (2**63, 1)},
    "size beyond int64": {"size": (2**32, 2**32), "stride": (0, 0)},
    "size beyond memory": {"size": (10**6, 10**6), "stride": (0, 0)},
    "offset before": {"offset": -1},
    "offset of a fraction": {"offset": 1.0},
    "stride back": {"offset": 5, "stride": (-1, 1)},
    "size of less than nothing": {"size": (-2, -2)},
    "more strides than sizes": {"size": (2,)},
    "size of no tuple": {"size": 2},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", [*WRONG_STORAGES, *WRONG_SHAPES])
def test_tensors_stay_inside_of_the_file(tmp_path, fired, case, legacy):
    wrong = tensor(**WRONG_SHAPES[case]) if case in WRONG_SHAPES else tensor(WRONG_STORAGES[case])
    path = file_of(tmp_path / "harmful.pt", entries(model={"weight": wrong}, harm=TRAP), legacy)
    with pytest.raises(ValueError, match=r"harmful\.pt: cannot be read as a checkpoint") as error:
        load_weights(path)
    assert ("exceeds its 6 values" in str(error.value)) == (" beyond" in case)  # said by us, not by torch
    if any(word in case for word in ("before", "fraction", "back", "less than nothing")):
        assert ("does not have the size" if legacy and case in WRONG_STORAGES else "the description of") in str(
            error.value
        )


def module(**state) -> bytes:
    return TRAP + push(state) + b"b"


def test_a_module_inside_itself(tmp_path, fired):
    state = entries(_parameters={"weight": tensor(), "bias": None}, _modules={"again": b"h\x01"})
    assert list(read_parameters(file_of(tmp_path / "a.pt", TRAP + b"q\x01" + state + b"b"))) == ["weight"]
    # thirty modules, each twice in the next: a thousand million names
    twice = module(_modules={"a": b"h\x01", "b": b"h\x01"}) + b"q\x01"
    levels = (module(_parameters={"weight": tensor()}) + b"q\x01", *[twice] * 30)
    assert len(read_parameters(file_of(tmp_path / "b.pt", entries(levels=levels, model=b"h\x01")))) == 1


def test_parameters_of_any_version(tmp_path, fired):
    makers = (("torch._utils", "_rebuild_parameter"), ("torch.nn.parameter", "Parameter"))  # the latter in torch 0.4
    tree = module(_parameters={function: call(place, function, tensor(), True) for place, function in makers})
    state = read_parameters(file_of(tmp_path / "a.pt", tree, legacy=True))
    assert [values.tolist() for values in state.values()] == [[[1, 2], [3, 4]]] * 2


@pytest.mark.parametrize("legacy", [False, True])
def test_files_cut_short(tmp_path, legacy):
    network = torch.nn.Linear(30, 20)
    torch.save({"model": network, "x": [1, 2.5]}, tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
    assert read_parameters(tmp_path / "whole.pt").keys() == {"weight", "bias"}
    whole = (tmp_path / "whole.pt").read_bytes()
    for size in (0, 1, 30, 200, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.pt: cannot be read as a checkpoint"):
            load_weights(tmp_path / "cut.pt")


def test_zip_files_that_hold_more_than_their_size(tmp_path):
    tree = entries(model={"weight": tensor(storage(numel=10**7))}, harm=TRAP)
    bomb = file_of(tmp_path / "bomb.pt", tree, content=bytes(4 * 10**7), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="smaller than its entries"):
        read_parameters(bomb)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"that torch\.save did not write"):
        read_parameters(tmp_path / "other.pt")


def test_half_precision_and_shared_storages(tmp_path):
    network = torch.nn.Linear(3, 2).half()
    network.register_buffer("seen", torch.tensor(7))
    network.bias = torch.nn.Parameter(network.weight.detach()[:, 1])
    torch.save(network, tmp_path / "half.pt")
    state = read_parameters(tmp_path / "half.pt")
    assert state.keys() == {"weight", "bias", "seen"}
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert state["weight"].dtype == torch.float16
