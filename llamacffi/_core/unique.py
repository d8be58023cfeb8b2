"""Objects that cannot be copied: a copy would be a second owner of the same C memory."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

WHY = "it refers to C memory of this process"
INSTEAD = "create another one instead"


def refuse_copy(one: Any, why: str, instead: str) -> NoReturn:
    """Raise the TypeError for an attempt to copy or pickle an object."""
    name = type(one).__name__
    article = "an" if name[0] in "AEIOU" else "a"
    raise TypeError(f"{article} {name} cannot be copied or pickled, since {why}: {instead}")


class Unique:
    """Base of classes that `copy` and `pickle` refuse."""

    __slots__ = ()

    _why: ClassVar[str] = WHY
    """The reason that the error gives."""
    _instead: ClassVar[str] = INSTEAD
    """What the error advises."""

    def __reduce__(self) -> NoReturn:
        """Raise TypeError for `copy.copy`, `copy.deepcopy` and `pickle`."""
        refuse_copy(self, self._why, self._instead)
