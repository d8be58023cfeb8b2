"""Models from the Hugging Face hub: which files of a repository make up one model."""

from __future__ import annotations

import errno
import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from .._core.text import checked_path
from .._core.values import check_text
from ..errors import ArgumentError, DependencyError, LoadError, ModelNotFoundError

# The end of the name of one of several files of a model.
SHARD = re.compile(r"-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")

# Files that lie beside models and are none: projectors of media, statistics for quantizing.
COMPANIONS = ("mmproj", "imatrix")

# How many names an error lists.
MAX_LISTED = 30

_T = TypeVar("_T")


def download(
    repo_id: str,
    filename: str | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> list[str]:
    """Download a GGUF, or all files of one, unless they are there already.

    Args:
        repo_id: ``"owner/name"``, or ``"owner/name:Q4_K_M"`` for the model with that in its name.
        filename: The file, or a pattern such as ``"*Q4_K_M.gguf"`` that one model matches.  Without
            it the repository must have one only.  Projectors (mmproj) and importance matrices count
            only if the pattern says so.
        revision: A branch, a tag or a commit; by default the main branch.
        cache_dir: Where to keep files, in the hub's own layout.
        local_dir: Where to put the files instead, under their own names.
        token: For repositories that are not public; by default that of ``hf auth login``.

    Returns:
        The paths, in order if there are several.

    Raises:
        DependencyError: ``huggingface_hub`` is not installed.
        ArgumentError: No model matches, or several, or some files of it are missing; the message
            lists what there is.
        ModelNotFoundError: There is no such repository, revision or file.
        LoadError: The hub cannot be reached, or refuses.
    """
    repo_id, wanted = _parse(repo_id, filename)
    if revision is not None:
        check_text("revision", revision)
    for name, path in (("cache_dir", cache_dir), ("local_dir", local_dir)):
        if path is not None:
            checked_path(path, name)
    hub = _import_hub()
    if wanted.is_exact:
        names = _all_shards(wanted.text)
    else:
        names = choose(
            repo_id,
            _ask(
                hub,
                repo_id,
                lambda: hub.HfApi().list_repo_files(repo_id, revision=revision, token=token),
            ),
            wanted,
        )

    def get(name: str) -> str:
        return str(
            hub.hf_hub_download(
                repo_id,
                name,
                revision=revision,
                cache_dir=cache_dir,
                local_dir=local_dir,
                token=token,
            )
        )

    return [_ask(hub, f"{repo_id}/{name}", functools.partial(get, name)) for name in names]


@dataclass(frozen=True)
class Wanted:
    """What the file of a model is called."""

    text: str
    """A name, a pattern or a tag."""
    is_tag: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether it is the name of a file."""
        return not self.is_tag and not any(char in self.text for char in "*?[")

    def matches(self, name: str) -> bool:
        """Return whether a file is meant."""
        base = name.rpartition("/")[2].lower()
        if any(one in base and one not in self.text.lower() for one in COMPANIONS):
            return False
        whole = SHARD.sub(".gguf", name)
        if self.is_tag:
            tag = rf"(^|[-._/]){re.escape(self.text)}([-./]|$)"  # Q4_K is not in Q4_K_M
            return re.search(tag, whole.removesuffix(".gguf"), re.IGNORECASE) is not None
        return any(fnmatch.fnmatchcase(one, self.text) for one in (name, whole))


def choose(repo_id: str, names: Iterable[str], wanted: Wanted) -> list[str]:
    """Return the files of the one model that is wanted, in order.

    Args:
        repo_id: For messages.
        names: All files of the repository.
        wanted: What it is called.

    Raises:
        ArgumentError: There is none, or more than one, or a file of it is missing.
    """
    there = sorted(name for name in names if name.endswith(".gguf"))
    if not there:
        raise ArgumentError(f"{repo_id} has no GGUF files")
    models: dict[str, str] = {}
    for name in there:
        if wanted.matches(name):
            models.setdefault(SHARD.sub(r"-of-\g<count>.gguf", name), name)
    if len(models) != 1:
        number, found = ("no", there) if not models else (len(models), list(models.values()))
        raise ArgumentError(
            f"{repo_id} has {number} models for {wanted.text!r}; there are {_listed(found)}"
        )
    shards = _all_shards(*models.values())
    if missing := [name for name in shards if name not in there]:
        raise ArgumentError(f"{repo_id} lacks files of the model: {_listed(missing)}")
    return shards


def _parse(repo_id: str, filename: str | None) -> tuple[str, Wanted]:
    """Return the repository and what its file is called."""
    check_text("repo_id", repo_id)
    if filename is not None:
        check_text("filename", filename)
    repo_id, colon, tag = repo_id.partition(":")
    if colon and (filename is not None or not tag):
        raise ArgumentError(f"{repo_id!r} has {f':{tag}'!r} behind it: give a tag or a filename")
    if colon:
        return repo_id, Wanted(tag, is_tag=True)
    return repo_id, Wanted("*.gguf" if filename is None else filename)


def _all_shards(name: str) -> list[str]:
    """Return the names of all files of the model that a file belongs to."""
    shard = SHARD.search(name)
    if shard is None or not int(shard["count"]):
        return [name]
    start, count = name[: shard.start()], shard["count"]
    return [f"{start}-{no:05}-of-{count}.gguf" for no in range(1, int(count) + 1)]


def _listed(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _ask(hub: Any, what: str, call: Callable[[], _T]) -> _T:
    """Call the hub; its errors, and those of the HTTP library under it, become ours."""
    try:
        return call()
    except (
        hub.errors.EntryNotFoundError,
        hub.errors.RepositoryNotFoundError,
        hub.errors.RevisionNotFoundError,
    ) as error:
        # The last two are also what the hub says of what is there, but not for everybody; and the
        # first of what is not in the cache, if it cannot be reached.
        if isinstance(error, (hub.errors.GatedRepoError, hub.errors.LocalEntryNotFoundError)):
            raise LoadError(f"cannot get {what}: {error}") from error
        raise ModelNotFoundError(errno.ENOENT, f"the hub has none: {error}", what) from error
    except hub.errors.HFValidationError as error:
        raise ArgumentError(str(error)) from error
    except Exception as error:  # of several libraries, without a base of their own
        raise LoadError(f"cannot get {what}: {type(error).__name__}: {error}") from error


def _import_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise DependencyError(
            "models from the hub need huggingface_hub: pip install 'llamacffi[hf]'"
        ) from error
    return huggingface_hub
