"""Properties of a model, compared with what was written to its file."""

from __future__ import annotations

import pytest

from llamacffi import ArgumentError, ClosedError, Gguf, Model, UnsupportedError, enums
from tests.facade import random_models as random

# Of every model, with what kind of value.
PROPERTIES = {
    "architecture": str,
    "desc": str,
    "ftype": enums.Ftype,
    "ftype_name": str,
    "size": int,
    "n_params": int,
    "n_ctx_train": int,
    "n_embd": int,
    "n_embd_inp": int,
    "n_embd_out": int,
    "n_layer": int,
    "n_layer_nextn": int,
    "n_head": int,
    "n_head_kv": int,
    "n_swa": int,
    "rope_type": enums.RopeType,
    "rope_freq_scale_train": float,
    "has_encoder": bool,
    "has_decoder": bool,
    "is_recurrent": bool,
    "is_hybrid": bool,
    "is_diffusion": bool,
    "n_cls_out": int,
    "cls_labels": tuple,
    "devices": tuple,
}
# What llama.cpp knows without the parameters of the architecture.
ALWAYS = {
    "architecture",
    "desc",
    "size",
    "n_params",
    "has_encoder",
    "has_decoder",
    "is_recurrent",
    "is_hybrid",
    "is_diffusion",
    "devices",
}

EXPECTED = {
    "llama": {
        "n_head": random.N_HEAD,
        "n_head_kv": random.N_HEAD,
        "rope_type": enums.RopeType.NORM,
    },
    "gpt2": {"rope_type": enums.RopeType.NONE},
    "mamba": {"is_recurrent": True, "n_swa": 0, "rope_type": enums.RopeType.NONE},
    "bert": {"n_cls_out": 1, "cls_labels": ()},
    "bert+classifier": {
        "architecture": "bert",
        "n_cls_out": random.N_SCORES,
        "cls_labels": ("yes", "no", "perhaps"),
    },
    "t5": {"has_encoder": True, "has_decoder": True, "decoder_start_token": 3},
    "t5encoder": {"has_encoder": True, "has_decoder": False},
    "mimo2": {"n_swa": random.N_WINDOW, "n_layer_nextn": 1, "n_layer": random.N_LAYER},
    "qwen2vl": {"rope_type": enums.RopeType.MROPE},
    "lfm2": {"is_hybrid": True, "is_recurrent": False},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_properties_are_what_was_written(kind, random_path):
    path = random_path(kind)
    with Model(path) as model, Gguf.open(path) as gguf:
        for name, type_ in PROPERTIES.items():
            assert isinstance(getattr(model, name), type_), name
        tensors = gguf.tensors.values()
        assert model.n_params == sum(tensor.n_elements for tensor in tensors)
        assert model.size == sum(tensor.nbytes for tensor in tensors)
        assert model.n_ctx_train == random.N_CTX
        assert model.n_embd == model.n_embd_inp == model.n_embd_out == random.N_EMBD
        assert model.architecture == model.desc.split()[0] == kind.split("+")[0]
        assert (model.ftype, model.ftype_name) == (enums.Ftype.ALL_F32, "(guessed) all F32")
        assert model.rope_freq_scale_train == 1.0
        assert not model.is_diffusion
        assert (kind == "t5") is (model.decoder_start_token == 3)
        if kind not in ("t5", "t5encoder"):
            assert model.decoder_start_token is None
            assert not model.has_encoder
        for name, value in EXPECTED[kind].items():
            assert getattr(model, name) == value, name


@pytest.mark.parametrize("kind", ["llama", "mamba", "bert+classifier", "mimo2"])
def test_metadata_are_the_scalars_of_the_file(kind, random_path):
    path = random_path(kind)
    with Model(path, vocab_only=True) as model, Gguf.open(path) as gguf:
        scalars = {key for key in gguf if not gguf.is_array(key)}
        assert scalars == model.metadata.keys()
        for key in scalars:
            value, text = gguf[key], model.metadata[key]
            if isinstance(value, bool):
                assert text == str(value).lower()
            elif isinstance(value, float):
                assert float(text) == pytest.approx(value, abs=1e-6)
            else:
                assert text == str(value)


def test_mtp_layers_are_loaded_on_demand(random_path):
    with Model(random_path("mimo2")) as less, Model(random_path("mimo2"), load_mtp=True) as more:
        assert less.n_layer_nextn == more.n_layer_nextn == 1
        assert sum(less.placement.values()) < sum(more.placement.values()) == more.size


def test_every_property_is_tested():
    getters = {name for name in dir(Model) if isinstance(getattr(Model, name), property)}
    others = {"ptr", "address", "closed", "vocab", "chat_templates"}
    others |= {"recommended_sampling", "placement"}
    assert getters == set(PROPERTIES) | others | {"decoder_start_token"}


def test_without_the_hyperparameters(demo_path):
    with Model(demo_path, vocab_only=True) as model:
        for name, type_ in PROPERTIES.items():
            if name in ALWAYS:
                assert isinstance(getattr(model, name), type_), name
            else:
                with pytest.raises(UnsupportedError, match="vocab_only=True"):
                    getattr(model, name)
        with pytest.raises(UnsupportedError, match="vocab_only=True"):
            _ = model.decoder_start_token
        assert model.architecture == "llama"
        assert model.desc == ""
        assert repr(model).endswith(": llama, vocab_only>")
        assert model.chat_template() is None
        assert model.placement == {}


@pytest.mark.processor
def test_where_the_weights_are(demo_path):
    with Model(demo_path) as model:
        assert model.placement == {"CPU_Mapped": model.size}
        assert model.devices == ()
        assert repr(model).endswith("all F32, 566.6 KiB on the CPU>")
    with Model(demo_path, no_alloc=True) as model:
        assert model.placement == {"CPU": model.size}  # where they would go
        assert repr(model).endswith(": llama, no_alloc>")


def test_a_vocabulary_alone_has_no_placement(demo_path):
    with Model(demo_path, vocab_only=True) as model:
        assert model.placement == {}


def test_after_close(demo_path):
    model = Model(demo_path)
    metadata = model.metadata
    model.close()
    for name in [*PROPERTIES, "chat_templates", "placement", "decoder_start_token"]:
        if name not in ("architecture",):  # in the metadata, which were read before
            with pytest.raises(ClosedError):
                getattr(model, name)
    assert model.metadata is metadata
    assert repr(model) == f"<Model {str(demo_path)!r} closed>"


@pytest.fixture(scope="module")
def rich(tmp_path_factory, demo_path):
    """A model whose file has chat templates and recommended sampling settings."""
    path = tmp_path_factory.mktemp("rich") / "rich.gguf"
    with Gguf.open(demo_path) as gguf:
        gguf["tokenizer.chat_template"] = "{{ messages }} ä"
        gguf["tokenizer.chat_template.tool_use"] = "{{ tools }}"
        gguf["tokenizer.chat_template.rerank"] = "{query} {document}"
        gguf["general.file_type"] = int(enums.Ftype.MOSTLY_Q4_K_M)
        gguf["general.author"] = "somebody"
        gguf["general.quantization_version"] = 2
        gguf["general.sampling.top_k"] = 40
        gguf["general.sampling.temp"] = 0.75
        gguf["general.sampling.penalty_last_n"] = -1
        gguf["general.sampling.sequence"] = "top_k;temp"
        gguf["general.sampling.unheard_of"] = 3
        gguf.write(path)
    return path


def test_chat_templates(rich):
    with Model(rich, vocab_only=True) as model:
        assert model.chat_template() == "{{ messages }} ä"
        assert model.chat_template("tool_use") == "{{ tools }}"
        assert model.chat_template("rerank") == "{query} {document}"
        for name in ("other", "", "tool_use.", "default", "%s", "x" * 5000, "\udcff"):
            assert model.chat_template(name) is None
        with pytest.raises(ArgumentError, match="chat template"):
            model.chat_template("a\0b")
        assert model.chat_templates == {
            "default": "{{ messages }} ä",
            "tool_use": "{{ tools }}",
            "rerank": "{query} {document}",
        }
        with pytest.raises(TypeError):
            model.chat_templates["other"] = ""


def test_recommended_sampling(rich, model):
    with Model(rich, vocab_only=True) as other:
        assert other.recommended_sampling == {
            "top_k": 40,
            "temp": 0.75,
            "penalty_last_n": -1,
            "sequence": "top_k;temp",
        }
        assert other.recommended_sampling.get("top_p") is None
        assert [type(value) for value in other.recommended_sampling.values()].count(int) == 2
    assert model.recommended_sampling == {}


def test_the_type_of_a_file(rich, demo_path, tmp_path):
    with Model(rich) as model:
        assert model.ftype == enums.Ftype.MOSTLY_Q4_K_M
        assert model.ftype_name == "Q4_K - Medium"
    with Model(demo_path, kv_overrides={"general.file_type": 999}) as model:
        assert model.ftype is None
        assert model.ftype_name == "unknown, may not work"


def test_a_long_value(tmp_path, demo_path):
    path = tmp_path / "long.gguf"
    with Gguf.open(demo_path) as gguf:
        gguf["general.description"] = "ä" * 10_000
        gguf["general.name"] = "n" * 300
        gguf.write(path)
    with Model(path, vocab_only=True) as model:
        assert model.metadata["general.description"] == "ä" * 10_000
        assert model.metadata["general.name"] == "n" * 300


def test_help_is_readable():
    text = Model.__doc__ or ""
    from llamacffi._generated.params import KINDS

    for field in KINDS["llama_model_params"]:
        assert f"``{field}``" in text or field.startswith("progress"), field
    for name in ("cpu_moe", "n_cpu_moe", "progress", "from_file", "from_gguf", "from_splits"):
        assert name in text


def test_readable_sizes():
    from llamacffi.model.model import _bytes

    assert [_bytes(size) for size in (0, 1023, 1024, 1536, 4 << 30, 5 << 50)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 KiB",
        "4 GiB",
        "5120 TiB",
    ]


def test_properties_do_not_need_numpy(run_python, demo_path):
    code = """
        import sys
        from llamacffi import Model
        model = Model(sys.argv[1])
        print(model.desc, model.placement, model.metadata["general.name"], repr(model))
        assert "numpy" not in sys.modules
    """
    assert run_python(code, demo_path).returncode == 0
