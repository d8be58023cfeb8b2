"""What may be meant by a path where there is no file."""

from __future__ import annotations

import difflib
import errno
import os
import re

from ..errors import ModelNotFoundError

# A Path makes one slash of two.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# As pages of the Hugging Face hub are addressed: the repository, the revision and the file.
_HUB_FILE = re.compile(
    r"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s]+/[^/\s?#]+)"
    r"(?:/(?:resolve|blob|raw)/([^/\s]+)/([^\s?#]+))?"
)
_REPOSITORY = re.compile(r"(?:hf:/+)?([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_FILE_IN_REPOSITORY = re.compile(r"(?:hf:/+)?([\w.-]+/[\w.-]+)/([\w./-]+\.gguf)")
# How many names of a directory are compared.
_MAX_NAMES = 1000


def no_file(message: str, name: str) -> ModelNotFoundError:
    """Return the error for a file that is not there; it says what may be meant.

    Args:
        message: That there is no file.
        name: The path, as it was given.
    """
    hint = path_hint(name)
    return ModelNotFoundError(errno.ENOENT, f"{message} ({hint})" if hint else message, name)


def path_hint(name: str) -> str:
    """Return what would work in place of a path where there is no file; empty if nobody knows.

    Args:
        name: The path, as it was given.
    """
    if name.startswith("~"):
        return f"'~' is the shell's: give os.path.expanduser({name!r})"
    if os.path.expandvars(name) != name:
        return f"variables are the shell's: give os.path.expandvars({name!r})"
    if name.startswith("file:"):
        return "give the path alone, without 'file:'"
    return _on_hub(name) or _nearby(name)


def _on_hub(name: str) -> str:
    """Return what to call for what looks like a model of the hub, or like a URL."""
    if match := _HUB_FILE.match(name):
        repository, revision, file = match.groups()
    elif _URL.match(name) and not name.startswith("hf:"):
        return "it is a URL: download the file, and give its path"
    elif match := _FILE_IN_REPOSITORY.fullmatch(name):
        repository, revision, file = match[1], None, match[2]
    elif (match := _REPOSITORY.fullmatch(name)) and not name.endswith(".gguf"):
        repository, revision, file = match[1] + (f":{match[2]}" if match[2] else ""), None, None
    else:
        return ""
    if not name.startswith(("hf:", "http")) and os.path.isdir(os.path.dirname(name)):
        return ""
    more = f", {file!r}" if file else ""
    more += f", revision={revision!r}" if revision not in (None, "main") else ""
    return f"for a model of the Hugging Face hub: Model.from_pretrained({repository!r}{more})"


def _nearby(name: str) -> str:
    """Return the file of the same directory whose name is the nearest."""
    directory, base = os.path.split(name)
    if directory and not os.path.isdir(directory):
        return f"there is no directory {directory!r}"
    try:
        with os.scandir(directory or ".") as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MAX_NAMES), strict=False)]
    except OSError:
        return ""
    if f"{base}.gguf" in names:
        near = [f"{base}.gguf"]
    else:
        near = difflib.get_close_matches(base, names, n=1, cutoff=0.75)
    return f"did you mean {os.path.join(directory, near[0])!r}?" if near else ""
