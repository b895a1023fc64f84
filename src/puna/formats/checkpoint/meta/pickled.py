"""data.pkl of a .pth file -> the storage and view of every tensor, by interpreting pickle opcodes as data.

No name in a pickle is imported, called or instantiated: globals are compared with the few names of a state dict, and
all others are rejected. Runs in the confined child, without torch and without any unpickler.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

from puna.pipeline.errors import CheckpointError

MAX_OPCODES = 4_000_000  # 405B has about 50,000.
MAX_MARKS = 64
MAX_TEXT_BYTES = 4096
MAX_TENSORS = 65_536
MAX_RANK = 8
MAX_COUNT = 2**48

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
ITEM_BYTES |= {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "complex64": 8}

STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
STORAGES |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
STORAGES |= {"ComplexFloat": "complex64"}

CALLS = {
    "collections.OrderedDict",
    *(f"torch._utils._rebuild_{kind}" for kind in ("tensor_v2", "tensor_v3", "parameter")),
}
STORAGE_DTYPES: dict[str, str | None] = {f"torch.{kind}Storage": dtype for kind, dtype in STORAGES.items()}
STORAGE_DTYPES["torch.storage.UntypedStorage"] = None
DTYPES = {f"torch.{dtype}": dtype for dtype in ITEM_BYTES}
KNOWN_GLOBALS = {*CALLS, *STORAGE_DTYPES, *DTYPES}


class Global(NamedTuple):
    """A global of the pickle, as a name only."""

    name: str


class Storage(NamedTuple):
    """The archive entry data/`key`: `num_items` of `dtype`, or bytes for None."""

    key: str
    dtype: str | None
    num_items: int

    @property
    def num_bytes(self) -> int:
        return self.num_items * (ITEM_BYTES[self.dtype] if self.dtype else 1)


class View(NamedTuple):
    """A tensor within a storage; `offset` and `stride` in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_state_dict(data: bytes) -> dict[str, View]:
    """Return the tensors of a state dict in order; CheckpointError for anything else."""
    state_dict = _Machine(data).run()
    if type(state_dict) is not dict:
        raise CheckpointError(f"data.pkl holds {_kind(state_dict)}", expected="a state dict: names with their tensors")
    for name, value in state_dict.items():
        if not isinstance(value, View):
            raise CheckpointError(f"data.pkl: {name!a} is {_kind(value)}", expected="a tensor")
    if len(state_dict) > MAX_TENSORS:
        raise CheckpointError(f"data.pkl names {len(state_dict):,} tensors", expected=f"at most {MAX_TENSORS:,}")
    return state_dict


class _Machine:
    """A pickle machine for data only: stack, marks and memo."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)[0]
            if opcode == STOP:
                return self.end()
            if opcode not in ACTIONS:
                name = REFUSED.get(opcode, "unknown to Puna")
                raise self.fail(f"opcode 0x{opcode:02x} ({name})", "the opcodes of a state dict")
            ACTIONS[opcode](self)
        raise self.fail(f"more than {MAX_OPCODES:,} opcodes", "a state dict")

    def end(self) -> Any:
        value = self.pop()
        if self.stack or self.marks or self.position != len(self.data):
            raise self.fail("data after the end", "one value")
        return value

    def fail(self, given: str, expected: str) -> CheckpointError:
        return CheckpointError(f"data.pkl, byte {self.position:,}: {given}", expected=expected)

    def take(self, num_bytes: int) -> bytes:
        end = self.position + num_bytes
        if end > len(self.data):
            raise self.fail("the pickle ends early", f"{num_bytes:,} more bytes")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, layout: str) -> int:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.fail("nothing on the stack", "a value")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    def push_tuple(self, size: int) -> None:
        self.push(tuple([self.pop() for _ in range(size)][::-1]))

    def push_mark(self) -> None:
        if len(self.marks) == MAX_MARKS:
            raise self.fail("marks inside one another", f"at most {MAX_MARKS}")
        self.marks.append(len(self.stack))

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise self.fail("no mark on the stack", "a mark")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def push_text(self, num_bytes: int) -> None:
        if num_bytes > MAX_TEXT_BYTES:
            raise self.fail(f"a text of {num_bytes:,} bytes", f"at most {MAX_TEXT_BYTES:,}")
        try:
            self.push(self.take(num_bytes).decode())
        except UnicodeDecodeError as error:
            raise self.fail("a text that is no UTF-8", "UTF-8") from error

    def push_long(self) -> None:
        num_bytes = self.number("<B")
        if num_bytes > 8:
            raise self.fail(f"an integer of {num_bytes} bytes", "at most 8")
        self.push(int.from_bytes(self.take(num_bytes), "little", signed=True))

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.fail(f"memo {index:,}, which is empty", "an earlier value")
        self.push(self.memo[index])

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_TEXT_BYTES)
        if end < 0:
            raise self.fail("a name without an end", "a name on a line")
        return self.take(end + 1 - self.position)[:-1].decode("ascii", "backslashreplace")

    def push_global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise self.fail("a global without a name", "module and name")
        if f"{module}.{name}" not in KNOWN_GLOBALS:
            raise self.foreign(f"{module}.{name}")
        self.push(Global(f"{module}.{name}"))

    def foreign(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"data.pkl, byte {self.position:,}: it names {name!a}",
            expected="tensors, storages and OrderedDict only",
            hint="Nothing of it was run: a file that asks for code is no checkpoint of Meta's",
        )

    def refuse_instance(self) -> None:
        raise self.foreign(f"{self.line()}.{self.line()}")

    def push_global_of_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.push_global(module, name)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict or len(pairs) % 2:
            raise self.fail("items for something that is no dict", "pairs for a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # NOTE: only strings are hashed: hashing nested tuples takes exponential time.
            if type(key) is not str or key in target:
                raise self.fail("a key that is no text, or a duplicate", "distinct names as keys")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def push_storage(self) -> None:
        match self.pop():
            case ("storage", Global(kind), str(key), str(), int(count)) if kind in STORAGE_DTYPES:
                if not 0 <= count < MAX_COUNT:
                    raise self.fail(f"a storage of {count} elements", f"0 to {MAX_COUNT:,}")
                self.push(Storage(key, STORAGE_DTYPES[kind], count))
            case _:
                raise self.fail("a persistent id that is no storage", "('storage', kind, key, place, count)")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise self.fail("a call of something that is no name", "a tensor or an OrderedDict")
        match function.name, arguments:
            case "collections.OrderedDict", ():
                self.push({})
            case "torch._utils._rebuild_parameter", (View() as view, bool(), dict()):
                self.push(view)
            case (
                "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor_v3",
                (Storage() as storage, offset, shape, stride, bool(), dict(), *rest),
            ):
                self.push(self.view(storage, self.dtype(storage, rest), offset, shape, stride))
            case _:
                raise self.fail(
                    f"a call of {function.name} with other arguments than a tensor's",
                    "the arguments that torch.save writes",
                )

    def dtype(self, storage: Storage, rest: list[Any]) -> str:
        """Return a tensor's dtype: the storage's dtype, or the tensor's own for an untyped storage."""
        match storage.dtype, rest:
            case str(dtype), [] | [dict()]:
                return dtype
            case None, [Global(name)] | [Global(name), dict()] if name in DTYPES:
                return DTYPES[name]
            case _:
                raise self.fail("a tensor without a single dtype", "a dtype of the tensor or of its storage")

    def view(self, storage: Storage, dtype: str, offset: Any, shape: Any, stride: Any) -> View:
        """Return the view; CheckpointError if elements lie outside the storage or repeat."""
        count = storage.num_bytes // ITEM_BYTES[dtype]
        if not _are_counts((offset,)) or not _are_counts(shape) or not _are_counts(stride) or len(shape) != len(stride):
            raise self.fail("a tensor's offset, shape or stride", f"at most {MAX_RANK} counts from 0")
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if (0 not in shape and last >= count) or offset > count:
            raise self.fail(f"a tensor of shape {list(shape)} at {offset:,}", f"a tensor inside its {count:,} elements")
        if _repeats(shape, stride):
            raise self.fail(
                f"a tensor of shape {list(shape)}, stride {list(stride)}", "a tensor without repeated elements"
            )
        return View(storage, dtype, offset, shape, stride)

    def build(self) -> None:
        """Drop the state of a state dict: the versions of modules in `_metadata`."""
        state, target = self.pop(), self.top()
        if type(target) is not dict or type(state) is not dict or state.keys() - {"_metadata"}:
            raise self.fail("a state to be set on an object", "the _metadata of a state dict")


def _are_counts(values: Any) -> TypeGuard[tuple[int, ...]]:
    return (
        type(values) is tuple
        and len(values) <= MAX_RANK
        and all(type(value) is int and 0 <= value < MAX_COUNT for value in values)
    )


def _repeats(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether indices share elements, as in expanded tensors: a stride within the reach of smaller ones."""
    reach = 0
    for step, size in sorted((step, size) for size, step in zip(shape, stride, strict=True) if size > 1):
        if step <= reach:
            return True
        reach += (size - 1) * step
    return False


def _kind(value: Any) -> str:
    return "a tensor" if isinstance(value, View) else f"a {type(value).__name__.lower()}"


def _protocol(machine: _Machine) -> None:
    if (protocol := machine.number("<B")) not in (2, 3, 4, 5):
        raise machine.fail(f"pickle protocol {protocol}", "2 to 5")


def _frame(machine: _Machine) -> None:
    machine.take(8)  # The frame length, for streaming readers.


STOP = ord(".")
ACTIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _protocol,
    0x95: _frame,
    ord("("): _Machine.push_mark,
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("J"): lambda machine: machine.push(machine.number("<i")),
    ord("K"): lambda machine: machine.push(machine.number("<B")),
    ord("M"): lambda machine: machine.push(machine.number("<H")),
    0x8A: _Machine.push_long,
    ord("X"): lambda machine: machine.push_text(machine.number("<I")),
    0x8C: lambda machine: machine.push_text(machine.number("<B")),
    ord(")"): lambda machine: machine.push(()),
    0x85: lambda machine: machine.push_tuple(1),
    0x86: lambda machine: machine.push_tuple(2),
    0x87: lambda machine: machine.push_tuple(3),
    ord("t"): lambda machine: machine.push(tuple(machine.pop_to_mark())),
    ord("}"): lambda machine: machine.push({}),
    ord("s"): _Machine.set_item,
    ord("u"): lambda machine: machine.set_items(machine.pop_to_mark()),
    ord("q"): lambda machine: machine.remember(machine.number("<B")),
    ord("r"): lambda machine: machine.remember(machine.number("<I")),
    0x94: lambda machine: machine.remember(len(machine.memo)),
    ord("h"): lambda machine: machine.recall(machine.number("<B")),
    ord("j"): lambda machine: machine.recall(machine.number("<I")),
    ord("c"): lambda machine: machine.push_global(machine.line(), machine.line()),
    ord("i"): _Machine.refuse_instance,
    0x93: _Machine.push_global_of_stack,
    ord("Q"): _Machine.push_storage,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}
# Names of rejected opcodes for errors; all opcodes outside ACTIONS are rejected.
REFUSED = {ord("o"): "OBJ", 0x81: "NEWOBJ", 0x92: "NEWOBJ_EX", 0x8B: "LONG4", ord("]"): "EMPTY_LIST"}
REFUSED |= {ord("P"): "PERSID", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", ord("B"): "BINBYTES", ord("G"): "BINFLOAT"}
