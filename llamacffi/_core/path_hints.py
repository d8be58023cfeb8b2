"""Suggestions for a path that does not exist."""

from __future__ import annotations

import difflib
import errno
import os
import re

from ..errors import ModelNotFoundError

# pathlib.Path turns two slashes into one.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# The address of a page of the Hugging Face hub: the repository, the revision and the file.
_HUB_FILE = re.compile(
    r"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s]+/[^/\s?#]+)"
    r"(?:/(?:resolve|blob|raw)/([^/\s]+)/([^\s?#]+))?"
)
_REPOSITORY = re.compile(r"(?:hf:/+)?([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_FILE_IN_REPOSITORY = re.compile(r"(?:hf:/+)?([\w.-]+/[\w.-]+)/([\w./-]+\.gguf)")
# At most this many names of a directory are compared.
_MAX_NAMES = 1000


def no_file(message: str, name: str) -> ModelNotFoundError:
    """Return the error for a file that does not exist, with a suggestion if there is one.

    Args:
        message: The message, without the suggestion.
        name: The path as it was given.
    """
    hint = path_hint(name)
    return ModelNotFoundError(errno.ENOENT, f"{message} ({hint})" if hint else message, name)


def path_hint(name: str) -> str:
    """Return a suggestion for a path that does not exist; empty if there is none.

    Args:
        name: The path as it was given.
    """
    if name.startswith("~"):
        return f"only the shell expands '~': pass os.path.expanduser({name!r})"
    if os.path.expandvars(name) != name:
        return f"only the shell expands variables: pass os.path.expandvars({name!r})"
    if name.startswith("file:"):
        return "pass the path alone, without 'file:'"
    return _on_hub(name) or _nearby(name)


def _on_hub(name: str) -> str:
    """Return a suggestion for a name that looks like a model of the hub, or like a URL."""
    if match := _HUB_FILE.match(name):
        repository, revision, file = match.groups()
    elif _URL.match(name) and not name.startswith("hf:"):
        return "it is a URL: download the file, and pass its path"
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
    """Return a suggestion: the file of the same directory with the most similar name."""
    directory, base = os.path.split(name)
    if directory and not os.path.isdir(directory):
        return f"the directory {directory!r} does not exist"
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
