"""A reader of pickles that runs no code from them.

A pickle is a program that names functions and calls them. `read_pickle` executes it without
importing anything: what it may name is a table of the caller, and the values in that table are
what it gets. Plain values (numbers, text, bytes, lists, tuples, dicts) need no table.

Source: the opcodes and how each one's argument is stored are those of Python's `pickletools`.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from weaktr.messages import brief

#: Levels of containers in what is handed on: a hash of more may end the process.
MOST_LEVELS = 100
#: Values and characters that calls get and make, in proportion to the bytes that were read.
MOST_MADE = 2


class Source(Protocol):
    """What a pickle is read from: `io.BytesIO`, `mmap.mmap`; reading much allocates little."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Maker:
    """What a pickle may call in place of the function or class that it names."""

    make: Callable[..., Any]


class Built:
    """A value that a pickle may complete after it made it (opcode BUILD)."""

    def build(self, state: Any) -> None:
        """Take over the rest of the value."""
        raise NotImplementedError


class Refused(ValueError):
    """The pickle names something that is not in the table; `name` is its full name."""

    def __init__(self, name: str) -> None:
        self.name = name if re.fullmatch(r"[\w.]{1,99}", name) else brief(name, 99)
        super().__init__(f"it asks for {self.name}, which could run code")


class Unread(ValueError):
    """The pickle may be whole, but it holds something that is not read; says what."""


def read_pickle(
    source: Source,
    table: Mapping[str, Any],
    refer: Callable[[Any], Any] | None = None,
) -> Any:
    """The value in a pickle of any protocol.

    Args:
        source: stands at the pickle's first byte, and afterwards behind its last one.
        table: full name ("module.name") -> what stands for it: a `Maker`, or a constant.
        refer: from a persistent identifier to its value; None = there may be none.

    Returns:
        Plain values, and those that `table` and `refer` made. One list or dict may be in several
        places, itself included.

    Raises:
        Refused: it names something that `table` lacks. Nothing was run.
        Unread: a dict's keys are something else than text and numbers; or a function gets
            something nested too deep.
        ValueError: cut off, or no pickle of plain values.
    """
    machine = _Machine(source, {**_PLAIN, **table}, refer)
    try:
        while True:
            code = source.read(1)
            if code == b".":
                return machine.pop()
            if code not in _OPCODES:
                raise ValueError(
                    f"no pickle of plain values, opcode {code!r}" if code else "it is cut off"
                )
            read, act = _OPCODES[code]
            act(machine, None if read is None else read(source))
    except (Refused, Unread):
        raise
    except ValueError as error:
        raise ValueError(f"{error!s:.200}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"a damaged pickle ({type(error).__name__}: {error!s:.200})") from error


def count_values(value: Any, most: int) -> int:
    """How many values there are in a value, itself among them, each as often as it stands there.

    Args:
        value: lists, tuples and dicts are looked into.
        most: where the counting ends.

    Raises:
        ValueError: there are more.
        Unread: there are more than `MOST_LEVELS` levels, as in a value that holds itself.
    """
    count, levels = 0, [iter((value,))]
    while levels:
        for inner in levels[-1]:
            count += 1
            if count > most:
                raise ValueError("it holds more values than its bytes can account for")
            if isinstance(inner, list | tuple | dict):
                levels.append(iter(inner.values() if isinstance(inner, dict) else inner))
                if len(levels) > MOST_LEVELS:
                    raise Unread(f"it is nested more than {MOST_LEVELS} levels deep, or in itself")
                break
        else:
            levels.pop()
    return count


def _bytes_of(text: str = "", encoding: str = "latin1") -> bytes:
    """How pickles of protocol 2 hold bytes: as text, each character one byte."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes as text in {brief(encoding)}")
    return text.encode("latin1")


#: What every table has: bytes as older protocols write them, and kinds of dicts.
_PLAIN = {
    "_codecs.encode": Maker(_bytes_of),
    "builtins.bytes": Maker(lambda: b""),
    "__builtin__.bytes": Maker(lambda: b""),
    "collections.OrderedDict": Maker(lambda: {}),
    "collections.Counter": Maker(lambda counts: counts),
}


class _Machine:
    """The stack and the memo of a pickle.

    Args:
        source, table, refer: as in `read_pickle`.
    """

    def __init__(
        self, source: Source, table: Mapping[str, Any], refer: Callable[[Any], Any] | None
    ) -> None:
        self.source, self.table, self.refer = source, table, refer
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  #: the stacks under the marks
        self.memo: dict[int, Any] = {}
        self.made = 0  #: values and characters, of parts that may be recalled again and again

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def ignore(self, _: Any) -> None:
        """An opcode that only helps other readers."""

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Everything since the last mark, which is taken off the stack."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def drop(self, _: Any) -> None:
        self.pop()

    def drop_marked(self, _: Any) -> None:
        self.marked()

    def keep(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.push(self.memo[index])

    def name(self, name: str) -> None:
        """GLOBAL: "module name"."""
        name = name.replace(" ", ".", 1)
        if name not in self.table:
            raise Refused(name)
        self.push(self.table[name])

    def name_on_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("it names something without text")
        self.name(f"{module} {name}")

    def reduce(self, _: Any) -> None:
        """REDUCE and NEWOBJ: call what stands for a function or class."""
        arguments, maker = self.pop(), self.pop()
        if not isinstance(maker, Maker) or not isinstance(arguments, tuple):
            raise ValueError("it calls something that is no function")
        value = maker.make(*self.handed_on(arguments))
        if isinstance(value, bytes | str):
            self.made += len(value)
            if self.made > self.most_made():
                raise ValueError("it makes more bytes than it holds")
        self.push(value)

    def most_made(self) -> int:
        """How large `made` may be by now."""
        return MOST_MADE * self.source.tell()

    def handed_on(self, value: Any) -> Any:
        """A value for a function, which may hash, compare and copy it: counted before.

        Raises:
            ValueError, Unread: see `count_values`.
        """
        self.made += count_values(value, self.most_made() - self.made)
        return value

    def build(self, _: Any) -> None:
        """BUILD: complete a value; the attributes of an OrderedDict are left out."""
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Built):
            target.build(self.handed_on(state))
        elif not isinstance(target, dict):
            raise ValueError(f"it gives attributes to a {type(target).__name__}")

    def refer_to(self, _: Any) -> None:
        """BINPERSID."""
        if self.refer is None:
            raise ValueError("it refers to something outside")
        self.push(self.refer(self.handed_on(self.pop())))

    def make_set(self, _: Any) -> None:
        """EMPTY_SET: what the table has for sets; what is put into it is not hashed."""
        self.name("builtins set")
        self.push(())
        self.reduce(None)

    def make_frozenset(self, _: Any) -> None:
        """FROZENSET: likewise."""
        self.marked()
        self.make_set(None)

    def drop_items(self, _: Any) -> None:
        """ADDITEMS: see `make_set`."""
        self.marked()
        if not isinstance(self.stack[-1], Built):
            raise ValueError(f"it adds items to a {type(self.stack[-1]).__name__}")

    def make_list(self, _: Any) -> None:
        values = self.marked()
        self.push(values)

    def append(self, _: Any) -> None:
        value = self.pop()
        _list(self.stack[-1]).append(value)

    def append_marked(self, _: Any) -> None:
        values = self.marked()
        _list(self.stack[-1]).extend(values)

    def make_tuple(self, _: Any) -> None:
        values = self.marked()
        self.push(tuple(values))

    def make_dict(self, _: Any) -> None:
        values = self.marked()
        self.push({})
        self.set_items(values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_marked(self, _: Any) -> None:
        self.set_items(self.marked())

    def set_items(self, values: list[Any]) -> None:
        """Keys and values, alternating, for the dict on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError(f"it gives items to a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, _KEYS):  # a tuple's hash may run through more than memory holds
                raise Unread(f"it has a dict with a key of type {type(key).__name__}")
            target[key] = value


#: The types of a dict's keys.
_KEYS = (str, int, float, bytes, type(None))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"it appends to a {type(value).__name__}")
    return value


def _push_new(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


def _push_tuple(size: int) -> Callable[[_Machine, Any], None]:
    def act(machine: _Machine, _: Any) -> None:
        machine.push(tuple([machine.pop() for _ in range(size)][::-1]))

    return act


#: Opcode's name in `pickletools` -> what it does. None of them imports or calls anything of Python.
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _Machine.ignore),
    **dict.fromkeys(
        (
            "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
            "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
            "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
        ),
        _Machine.push,
    ),
    "BYTEARRAY8": lambda machine, value: machine.push(bytes(value)),
    "EMPTY_SET": _Machine.make_set,
    "FROZENSET": _Machine.make_frozenset,
    "ADDITEMS": _Machine.drop_items,
    "NONE": _push_new(lambda: None),
    "NEWTRUE": _push_new(lambda: True),
    "NEWFALSE": _push_new(lambda: False),
    "EMPTY_LIST": _push_new(list),
    "EMPTY_DICT": _push_new(dict),
    "EMPTY_TUPLE": _push_new(tuple),
    "TUPLE1": _push_tuple(1),
    "TUPLE2": _push_tuple(2),
    "TUPLE3": _push_tuple(3),
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_marked,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.keep),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    "LIST": _Machine.make_list,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_marked,
    "TUPLE": _Machine.make_tuple,
    "DICT": _Machine.make_dict,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_marked,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_on_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.reduce),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer_to,
}  # fmt: skip
#: Opcode -> (reader of its argument or None, what it does).
_OPCODES: dict[bytes, tuple[Callable[[Any], Any] | None, Callable[[_Machine, Any], None]]] = {
    opcode.code.encode("latin1"): (
        None if opcode.arg is None else opcode.arg.reader,
        _ACTIONS[opcode.name],
    )
    for opcode in pickletools.opcodes
    if opcode.name in _ACTIONS
}
