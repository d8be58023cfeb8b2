"""Numbers cross in the C locale, whatever the process has set."""

from __future__ import annotations

import os
import shutil
import subprocess
from textwrap import dedent

import pytest

from llamacffi import Gguf, demo
from tests.facade.loras import write_lora

SETTINGS = {"temp": 0.25, "min_p": 0.125, "top_p": 0.75, "penalty_repeat": 1.5}
SETUP = """
    import locale, sys
    import numpy as np
    if sys.argv[1]:
        locale.setlocale(locale.LC_ALL, sys.argv[1])
    assert locale.localeconv()["decimal_point"] == (sys.argv[1] and "," or ".")
    from llamacffi import *
    path, target = sys.argv[2:4]
"""
COMMA = "de_DE.UTF-8"
WORK = {
    "what a model recommends": """
        model = Model(path)
        print(dict(model.recommended_sampling))
        print(list(SamplerChain.from_model(model, seed=1)))
        print(dict(model.metadata), model.desc)
    """,
    "what save writes": """
        Model(path).save(target)
        print({key: value for key, value in Gguf.open(target, metadata_only=True).items()
               if not hasattr(value, "__len__")})
        print(dict(Model(target).recommended_sampling))
    """,
    "what quantize writes": """
        quantize(path, target, ftype="q8_0", kv_overrides={"general.sampling.temp": 0.5},
                 tt_overrides={"ffn": "f16"})
        print(dict(Model(target).metadata))
    """,
    "overrides": """
        model = Model(path, kv_overrides={"general.sampling.temp": 0.375})
        print(dict(model.recommended_sampling), dict(model.metadata))
    """,
    "rope scaling": """
        with Model(path) as model, Context(
            model, rope_scaling_type="yarn", rope_freq_scale=0.25, n_threads=1, n_ctx=256
        ) as context:
            context.decode(Batch.from_tokens([1, 2, 3]))
            print(context.logits().tolist())
    """,
    "the metadata of an adapter": """
        with Model(path) as model:
            print(dict(Adapter(model, sys.argv[4]).metadata))
    """,
    "text": """
        model = Model(path)
        context = Context(model, n_threads=1, n_ctx=256)
        print(generate(context, "1.5 and 2,5", max_tokens=20, sampler=SamplerChain(
            Temp(0.5), MinP(0.05), Dist(3))).text())
    """,
}


@pytest.fixture(scope="session")
def comma(tmp_path_factory):
    """Make a locale with a decimal comma; return the environment that has it."""
    tool = shutil.which("localedef")
    if tool is None:
        pytest.skip("there is no localedef to make a locale with")
    directory = tmp_path_factory.mktemp("locales")
    command = [tool, "--no-archive", "-i", "de_DE", "-f", "UTF-8", directory / "de_DE.UTF-8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > 1:  # 1 is a warning
        pytest.skip(f"localedef cannot make a locale: {done.stderr}")
    return {**os.environ, "LOCPATH": str(directory)}


@pytest.fixture(scope="session")
def recommending(tmp_path_factory):
    """Write a model whose metadata has fractions."""
    path = tmp_path_factory.mktemp("recommending") / "model.gguf"
    with Gguf.from_bytes(demo.to_bytes()) as gguf:
        for name, value in SETTINGS.items():
            gguf[f"general.sampling.{name}"] = value
        gguf.write(path)
    return path


@pytest.fixture(scope="session")
def adapter(tmp_path_factory):
    """Write an adapter with a fraction in its metadata."""
    path = tmp_path_factory.mktemp("adapter") / "adapter.gguf"
    shape = demo.weights()["output.weight"].shape
    return write_lora(path, {"output.weight": shape}, alpha=2.5)


@pytest.mark.parametrize("kind", WORK)
def test_a_decimal_comma_changes_nothing(run_python, comma, recommending, adapter, tmp_path, kind):
    printed = []
    for name in ("", COMMA):
        target = tmp_path / f"target{name}.gguf"
        code = dedent(SETUP) + dedent(WORK[kind])
        done = run_python(code, name, recommending, target, adapter, env=comma)
        assert not done.returncode, done.stderr
        printed.append((done.stdout, target.read_bytes() if target.exists() else None))
    assert printed[0][0]
    assert printed[0] == printed[1]


def test_the_locale_of_python_stays_what_it_is(run_python, comma, recommending, tmp_path):
    """Also where C calls Python: in a sampler, in the progress of a load, in the log."""
    code = """
        import logging
        seen = []
        def point(*_args):
            seen.append(locale.localeconv()["decimal_point"])
            return True
        class Handler(logging.Handler):
            emit = point
        logging.getLogger("llamacffi").addHandler(Handler())
        model = Model(path, progress=point)
        n = len(seen)
        assert n
        context = Context(model, n_threads=1, n_ctx=64, cb_eval=point)
        chain = SamplerChain(CustomSampler(point, point, point), Greedy())
        generate(context, "The", sampler=chain, max_tokens=3).text()
        assert len(seen) > n + 10
        try:
            lib.llama_vocab_get_text(model.vocab.ptr, 10**8)
        except NativeError:
            point()
        assert set(seen) == {","}, seen
        assert f"{1.5:n}" == "1,5"
        print(dict(model.recommended_sampling))
    """
    done = run_python(
        dedent(SETUP) + dedent(code), COMMA, recommending, tmp_path / "target", env=comma
    )
    assert not done.returncode, done.stderr
    assert eval(done.stdout) == SETTINGS
