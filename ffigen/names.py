"""C names to Python names."""

from __future__ import annotations

import keyword
from collections.abc import Mapping

from .api import Enum


def py_class(name: str, names: Mapping[str, str]) -> str:
    """Return the Python class for a C struct or enum: CamelCase, ``llama_`` dropped."""
    if name in names:
        return names[name]
    words = name.removeprefix("llama_").split("_")
    return "".join(word[:1].upper() + word[1:] for word in words)


def py_member(name: str, enum: Enum) -> str:
    """Return the Python name of an enumerator: without what it shares with its enum."""
    short = name.removeprefix(member_prefix(enum)) or name
    return f"_{short}" if short[0].isdigit() or keyword.iskeyword(short) else short


def member_prefix(enum: Enum) -> str:
    """Return the prefix of all members: the name of the enum, or else the words they share."""
    prefix = enum.name.upper() + "_"
    members = [member.name for member in enum.members]
    if all(member.startswith(prefix) for member in members):
        return prefix
    shared: list[str] = []
    for column in zip(*(member.split("_")[:-1] for member in members), strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "_".join(shared) + "_" if shared and len(members) > 1 else ""
