"""Which files of a repository form a model.  A fake replaces the hub: no network is needed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import llamacffi
from llamacffi import ArgumentError, DependencyError, LoadError, Model, ModelNotFoundError, hub

huggingface_hub = pytest.importorskip("huggingface_hub")

REPO = "someone/model-GGUF"
FILES = [
    ".gitattributes",
    "README.md",
    "model-Q4_K_M.gguf",
    "model-Q4_K_S.gguf",
    "model-Q8_0.gguf",
    "model-UD-Q4_K_XL.gguf",
    "mmproj-model-f16.gguf",
    "imatrix.gguf",
    "BF16/model-BF16-00001-of-00003.gguf",
    "BF16/model-BF16-00002-of-00003.gguf",
    "BF16/model-BF16-00003-of-00003.gguf",
    "broken-00001-of-00002.gguf",
]
BF16 = FILES[8:11]


class FakeHub:
    """The two functions of the hub that we use, over a list of names."""

    def __init__(self, root: Path, names: list[str], source: Path) -> None:
        self.root, self.names, self.source = root, names, source
        self.calls: list[tuple[str, dict[str, object]]] = []
        self.error: Exception | None = None

    def list_repo_files(self, repo_id, **options):
        self.calls.append(("list", {"repo_id": repo_id, **options}))
        if self.error:
            raise self.error
        return list(self.names)

    def hf_hub_download(self, repo_id, filename, **options):
        self.calls.append((filename, {"repo_id": repo_id, **options}))
        if self.error:
            raise self.error
        if filename not in self.names:
            raise huggingface_hub.errors.EntryNotFoundError(f"no {filename}")
        path = self.root / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.source, path)
        return str(path)


@pytest.fixture
def fake(monkeypatch, tmp_path, demo_path):
    fake = FakeHub(tmp_path / "cache", list(FILES), demo_path)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "list_repo_files",
        lambda _self, *a, **k: fake.list_repo_files(*a, **k),
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    return fake


def downloaded(fake):
    return [name for name, _ in fake.calls if name != "list"]


@pytest.mark.parametrize(
    ("repo", "filename", "names"),
    [
        (REPO, "model-Q8_0.gguf", ["model-Q8_0.gguf"]),
        (REPO, "*Q8_0.gguf", ["model-Q8_0.gguf"]),
        (REPO, "*-Q4_K_M*", ["model-Q4_K_M.gguf"]),
        (REPO, "model-Q4_K_[M].gguf", ["model-Q4_K_M.gguf"]),
        (f"{REPO}:Q8_0", None, ["model-Q8_0.gguf"]),
        (f"{REPO}:q4_k_s", None, ["model-Q4_K_S.gguf"]),
        (f"{REPO}:Q4_K_XL", None, ["model-UD-Q4_K_XL.gguf"]),
        (f"{REPO}:UD-Q4_K_XL", None, ["model-UD-Q4_K_XL.gguf"]),
        (f"{REPO}:BF16", None, BF16),
        (REPO, "BF16/*", BF16),
        (REPO, "*BF16.gguf", BF16),
        (REPO, "*-00001-of-00003.gguf", BF16),
        (REPO, BF16[0], BF16),
        (REPO, BF16[1], BF16),
        (REPO, "*mmproj*", ["mmproj-model-f16.gguf"]),
        (f"{REPO}:imatrix", None, ["imatrix.gguf"]),
    ],
)
def test_what_is_downloaded(fake, repo, filename, names):
    paths = hub.download(repo, filename)
    assert downloaded(fake) == names
    assert paths == [str(fake.root / name) for name in names]
    exact = filename in FILES
    assert (fake.calls[0][0] == "list") is not exact  # an exact name needs no list


@pytest.mark.parametrize(
    ("repo", "filename", "message"),
    [
        (REPO, None, "6 models that match"),
        (
            REPO,
            "*Q4_K*",
            "3 models that match .*has model-Q4_K_M.gguf, model-Q4_K_S.gguf, model-UD",
        ),
        (REPO, "*Q5*", r"no models that match '\*Q5\*'; it has BF16/model.*model-Q8_0.gguf"),
        (f"{REPO}:Q4_K", None, "no models that match 'Q4_K'"),
        (f"{REPO}:Q4", None, "no models that match 'Q4'"),
        (REPO, "*.md", "no models that match"),
        (REPO, "broken*", "lacks files of this model: broken-00002-of-00002.gguf"),
        (f"{REPO}:Q8_0", "model-Q8_0.gguf", "a tag or a filename"),
        (f"{REPO}:", None, "a tag or a filename"),
    ],
)
def test_a_name_that_does_not_match_one_model(fake, repo, filename, message):
    with pytest.raises(ArgumentError, match=message):
        hub.download(repo, filename)
    assert not downloaded(fake)


def test_a_repository_with_one_model_or_none(fake):
    fake.names = ["README.md", "mmproj-f16.gguf", "only.gguf"]
    assert hub.download(REPO) == [str(fake.root / "only.gguf")]
    fake.names = ["README.md"]
    with pytest.raises(ArgumentError, match="has no GGUF files"):
        hub.download(REPO)


def test_an_error_lists_a_limited_number_of_names(fake):
    fake.names = [f"model-{i:03}.gguf" for i in range(100)]
    with pytest.raises(ArgumentError, match=r"model-029.gguf and 70 more$"):
        hub.download(REPO)


def test_options_reach_the_hub(fake, tmp_path):
    hub.download(REPO, "*Q8_0.gguf", revision="v1", cache_dir=tmp_path, token="secret")
    (_, listed), (_, got) = fake.calls
    assert listed == {"repo_id": REPO, "revision": "v1", "token": "secret"}
    assert got == {**listed, "cache_dir": tmp_path, "local_dir": None}
    hub.download(REPO, "model-Q8_0.gguf", local_dir=tmp_path)
    assert fake.calls[-1][1]["local_dir"] == tmp_path


def test_a_missing_file(fake):
    with pytest.raises(ModelNotFoundError, match="not found on the hub") as caught:
        hub.download(REPO, "other.gguf")
    assert caught.value.filename == f"{REPO}/other.gguf"
    assert isinstance(caught.value, FileNotFoundError)


def http_error(kind):
    """Make an error of the hub without a response, which some versions require."""
    return kind.__new__(kind, "of the hub")


def test_errors_of_the_hub(fake):
    errors = huggingface_hub.errors
    for error, ours, match in (
        (http_error(errors.RepositoryNotFoundError), ModelNotFoundError, REPO),
        (http_error(errors.RevisionNotFoundError), ModelNotFoundError, REPO),
        (http_error(errors.GatedRepoError), LoadError, "cannot get"),
        (http_error(errors.HfHubHTTPError), LoadError, "HfHubHTTPError"),
        (errors.LocalEntryNotFoundError("not cached"), LoadError, "not cached"),
        (errors.HFValidationError("bad name"), ArgumentError, "bad name"),
        (ConnectionError("no route"), LoadError, "ConnectionError: no route"),
        (OSError(28, "no space"), LoadError, "no space"),
    ):
        fake.error = error
        for filename in ("*Q8_0.gguf", "model-Q8_0.gguf"):
            with pytest.raises(ours, match=match) as caught:
                hub.download(REPO, filename)
            assert caught.value.__cause__ is error
            assert type(caught.value) is ours
    fake.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        hub.download(REPO, "*Q8_0.gguf")


@pytest.mark.parametrize("arguments", [(3,), (None,), (REPO, 3), (REPO, Path("x"))])
def test_names_are_text(fake, arguments):
    with pytest.raises(TypeError, match="must be a str"):
        hub.download(*arguments)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DependencyError, match=r"pip install 'llamacffi\[hf\]'") as caught:
        Model.from_pretrained(REPO, "*Q8_0.gguf")
    assert isinstance(caught.value, ImportError)


def test_a_model_from_the_hub(fake, demo_path):
    parts: list[float] = []
    with Model.from_pretrained(
        f"{REPO}:Q8_0", load_mode="none", progress=parts.append, kv_overrides={"a.b": 1}
    ) as model:
        assert model.path == str(fake.root / "model-Q8_0.gguf")
        assert model.size > 0
        assert "CPU_Mapped" not in model.placement
    assert parts[-1] == 1.0


def test_shards_from_the_hub_are_one_model(fake, demo_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        Model,
        "from_splits",
        classmethod(lambda cls, paths, **params: given.append((paths, params))),
    )
    Model.from_pretrained(f"{REPO}:BF16", vocab_only=True)
    assert given == [([str(fake.root / name) for name in BF16], {"vocab_only": True})]


@pytest.mark.parametrize("params", [{"n_gpu_layer": 1}, {"progress": 3}])
def test_parameters_are_checked_before_the_download(fake, params):
    with pytest.raises(TypeError):
        Model.from_pretrained(REPO, "model-Q8_0.gguf", **params)
    assert not fake.calls


def test_the_module_is_public():
    assert llamacffi.hub is hub
