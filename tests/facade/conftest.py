"""The built-in model, loaded once, and contexts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llamacffi
from llamacffi import Context, Model, Vocab
from tests.facade import oracle, random_models


@pytest.fixture(scope="session")
def model(demo_path: Path, place: dict[str, Any]) -> Iterator[Model]:
    """The built-in model; do not close it."""
    if place:  # its matrix products are of another precision
        oracle.tolerance = 0.05
    with Model(demo_path, **place) as model:
        yield model


@pytest.fixture(scope="session")
def vocabularies(llama_cpp: Path) -> Iterator[dict[str, Vocab]]:
    """All vocabularies that come with llama.cpp, by name; do not close their models."""
    files = sorted((llama_cpp / "models").glob("ggml-vocab-*.gguf"))
    models = {file.stem.removeprefix("ggml-vocab-"): Model(file, vocab_only=True) for file in files}
    yield {name: model.vocab for name, model in models.items()}
    for model in models.values():
        model.close()


@pytest.fixture
def new_context(model: Model) -> Iterator[Callable[..., Context]]:
    """Make contexts of the built-in model, closed at the end of the test."""
    made: list[Context] = []

    def make(**params: object) -> Context:
        made.append(Context(model, **{"n_ctx": 256, "n_threads": 1, **params}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for context in made:
        context.close()


@pytest.fixture
def context(new_context: Callable[..., Context]) -> Context:
    """One sequence, 256 tokens."""
    return new_context()


@pytest.fixture
def chain() -> Iterator[Callable[..., llamacffi.SamplerChain]]:
    """Make sampler chains, closed at the end of the test."""
    made: list[llamacffi.SamplerChain] = []

    def make(*samplers: llamacffi.Sampler, **options: object) -> llamacffi.SamplerChain:
        made.append(llamacffi.SamplerChain(*samplers, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def random_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a model with random weights of a kind: see random_models.py."""
    written: dict[str, Path] = {}

    def path(kind: str) -> Path:
        if kind not in written:
            directory = tmp_path_factory.mktemp("random")
            written[kind] = random_models.write(directory / f"{kind}.gguf", kind)
        return written[kind]

    return path


@pytest.fixture
def random_context(
    random_path: Callable[[str], Path], place: dict[str, Any]
) -> Iterator[Callable[..., Context]]:
    """Make contexts of models of a kind, closed with them at the end of the test."""
    made: list[Model] = []

    def make(kind: str, **params: object) -> Context:
        mtp = {"load_mtp": True} if kind == "mimo2" else {}
        made.append(Model(random_path(kind), **mtp, **place))
        return Context(made[-1], **{"n_ctx": 256, "n_threads": 1, **params})  # type: ignore[arg-type]

    yield make
    for model in made:
        model.close()
