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

from .._core.shard_names import SHARD, all_shards
from .._core.text import checked_path
from .._core.values import check_text
from ..errors import ArgumentError, DependencyError, LoadError, ModelNotFoundError

# GGUF files next to models that are not models: media projectors, importance matrices.
COMPANIONS = ("mmproj", "imatrix")

# The most names that an error message lists.
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
    """Download a GGUF model, all its files if it is split, unless they are already cached.

    Args:
        repo_id: ``"owner/name"``, or ``"owner/name:Q4_K_M"`` for the model with that in its name.
        filename: The file, or a pattern such as ``"*Q4_K_M.gguf"`` that one model matches.  Without
            it the repository must hold exactly one model.  Projectors (mmproj) and importance
            matrices are considered only if the pattern contains ``mmproj`` or ``imatrix``.
        revision: A branch, a tag or a commit; by default the main branch.
        cache_dir: The directory of the cache, in the hub's own layout.
        local_dir: A directory to put the files in under their own names, instead of the cache.
        token: Access token for gated or private repositories; by default that of ``hf auth login``.

    Returns:
        The paths of the files, in order.

    Raises:
        DependencyError: ``huggingface_hub`` is not installed.
        ArgumentError: No model matches, several match, or files of the model are missing; the
            message lists the candidates.
        ModelNotFoundError: The repository, revision or file does not exist.
        LoadError: The hub cannot be reached or denies access.
    """
    repo_id, wanted = _parse(repo_id, filename)
    if revision is not None:
        check_text("revision", revision)
    for name, path in (("cache_dir", cache_dir), ("local_dir", local_dir)):
        if path is not None:
            checked_path(path, name)
    hub = _import_hub()
    if wanted.is_exact:
        names = all_shards(wanted.text)
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
    """Which file of a repository the caller asked for."""

    text: str
    """A file name, a pattern or a tag."""
    is_tag: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the text is an exact file name."""
        return not self.is_tag and not any(char in self.text for char in "*?[")

    def matches(self, name: str) -> bool:
        """Return whether the file called ``name`` is one that was asked for."""
        base = name.rpartition("/")[2].lower()
        if any(one in base and one not in self.text.lower() for one in COMPANIONS):
            return False
        whole = SHARD.sub(".gguf", name)
        if self.is_tag:
            tag = rf"(^|[-._/]){re.escape(self.text)}([-./]|$)"  # Q4_K must not match Q4_K_M
            return re.search(tag, whole.removesuffix(".gguf"), re.IGNORECASE) is not None
        return any(fnmatch.fnmatchcase(one, self.text) for one in (name, whole))


def choose(repo_id: str, names: Iterable[str], wanted: Wanted) -> list[str]:
    """Return the files of the one model that matches, in order.

    Args:
        repo_id: The repository, for messages.
        names: All files of the repository.
        wanted: What the caller asked for.

    Raises:
        ArgumentError: No model matches, several match, or a file of the model is missing.
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
            f"{repo_id} has {number} models that match {wanted.text!r}; it has {_listed(found)}"
        )
    shards = all_shards(*models.values())
    if missing := [name for name in shards if name not in there]:
        raise ArgumentError(f"{repo_id} lacks files of this model: {_listed(missing)}")
    return shards


def _parse(repo_id: str, filename: str | None) -> tuple[str, Wanted]:
    """Return the repository and which of its files is wanted."""
    check_text("repo_id", repo_id)
    if filename is not None:
        check_text("filename", filename)
    repo_id, colon, tag = repo_id.partition(":")
    if colon and (filename is not None or not tag):
        raise ArgumentError(
            f"{repo_id!r} is followed by {f':{tag}'!r}: give either a tag or a filename"
        )
    if colon:
        return repo_id, Wanted(tag, is_tag=True)
    return repo_id, Wanted("*.gguf" if filename is None else filename)


def _listed(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _ask(hub: Any, what: str, call: Callable[[], _T]) -> _T:
    """Call the hub, and turn its errors and those of its HTTP library into ours."""
    try:
        return call()
    except (
        hub.errors.EntryNotFoundError,
        hub.errors.RepositoryNotFoundError,
        hub.errors.RevisionNotFoundError,
    ) as error:
        # The hub also says "not found" of a gated repository; and EntryNotFoundError is the base of
        # the error for a file that is not cached while the hub cannot be reached.
        if isinstance(error, (hub.errors.GatedRepoError, hub.errors.LocalEntryNotFoundError)):
            raise LoadError(f"cannot get {what}: {error}") from error
        raise ModelNotFoundError(errno.ENOENT, f"not found on the hub: {error}", what) from error
    except hub.errors.HFValidationError as error:
        raise ArgumentError(str(error)) from error
    except Exception as error:  # from several libraries that share no base class
        raise LoadError(f"cannot get {what}: {type(error).__name__}: {error}") from error


def _import_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise DependencyError(
            "downloading from the hub needs huggingface_hub: pip install 'llamacffi[hf]'"
        ) from error
    return huggingface_hub
