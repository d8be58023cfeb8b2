"""Objects that cannot be copied: there is one of what they stand for."""

from __future__ import annotations

from typing import ClassVar, NoReturn


class Unique:
    """Base of classes that `copy` and `pickle` refuse: the copy would be a second owner."""

    __slots__ = ()

    _why: ClassVar[str] = "it stands for memory of C in this process"
    """What the error gives as the reason."""
    _instead: ClassVar[str] = "make another one in the same way"
    """What the error advises."""

    def __reduce__(self) -> NoReturn:
        """Raise TypeError for `copy.copy`, `copy.deepcopy` and `pickle`."""
        name = type(self).__name__
        article = "an" if name[0] in "AEIOU" else "a"
        raise TypeError(
            f"{article} {name} cannot be copied or pickled, since {self._why}: {self._instead}"
        )
