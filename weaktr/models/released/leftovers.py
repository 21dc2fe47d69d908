"""What training scripts leave in a checkpoint beside its weights: a closed list of harmless names.

None of them is imported or called. Deques become lists and defaultdicts dicts; NumPy's arrays keep
what the file says of them; of all others nothing is kept.
"""

from __future__ import annotations

from typing import Any

from weaktr.data.arrays import NUMPY
from weaktr.data.pickles import Built, Maker


class LeftOut(Built):
    """Stands in for a value that is not made again."""

    def build(self, state: Any) -> None:
        """Nothing of it is kept."""


#: One for all, so that a file of a million of them takes no memory.
LEFT_OUT = LeftOut()
_IS_LEFT_OUT = Maker(lambda *_: LEFT_OUT)
_BUILTINS = ("builtins", "__builtin__")
#: Names of types that are called.
_CALLED = {
    **dict.fromkeys(
        _BUILTINS, ("set", "frozenset", "complex", "bytearray", "slice", "range", "xrange")
    ),
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    **dict.fromkeys(
        ("pathlib", "pathlib._local"),
        ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"),
    ),
    "torch.serialization": ("_get_layout",),
    "torch.torch_version": ("TorchVersion",),
    "types": ("SimpleNamespace",),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "uuid": ("UUID",),
}
#: Names of types that stand there as values, such as what a defaultdict begins with.
_NAMED = dict.fromkeys(
    _BUILTINS, ("bool", "int", "long", "float", "str", "unicode", "list", "tuple", "dict")
)
#: What a pickle may name beside weights.
LEFTOVERS: dict[str, Any] = {
    **NUMPY,
    **{f"{module}.{name}": _IS_LEFT_OUT for module in _CALLED for name in _CALLED[module]},
    **{f"{module}.{name}": LEFT_OUT for module in _NAMED for name in _NAMED[module]},
    "collections.defaultdict": Maker(lambda factory=None: {}),
    "collections.deque": Maker(lambda start=(), most=None: []),
}
