"""The tables of the documentation are complete and true."""

from __future__ import annotations

import contextlib

import pytest

import llamacffi
from llamacffi import Batch, Context, Model, UnsupportedError
from tests.facade import random_models

N = 600  # tokens in a sequence, more than a sliding window holds
NEAR, FAR = N - 8, 8  # positions near the end and far from it


def table(path, first):
    """Return the table that contains ``first``, as rows of cells by their first cell."""
    paragraphs = path.read_text().split("\n\n")
    (found,) = (one for one in paragraphs if one.startswith("|") and first in one)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in found.split("\n")]
    return {row[0]: row[1:] for row in rows}


OPERATIONS = {
    "remove a whole sequence": [lambda memory: memory.remove(0)],
    "remove the end of one": [lambda memory, at=at: memory.remove(0, at) for at in (NEAR, FAR)],
    "remove the middle of one": [lambda memory: memory.remove(0, FAR, FAR + 4)],
    "`Memory.fork`, `Memory.copy` of a whole one": [
        lambda memory: memory.copy(0, 1),
        lambda memory: memory.fork(0, 1),
    ],
    "`Memory.copy` of its beginning": [
        lambda memory, at=at: memory.copy(0, 1, 0, at) for at in (NEAR, FAR)
    ],
    "`Memory.shift`, `Memory.divide`": [
        lambda memory: memory.shift(0, 2),
        lambda memory: memory.divide(0, 2),
    ],
    "`Memory.cut`": [lambda memory: memory.cut(0, FAR, FAR + 4)],
}
KINDS = {"dense": "llama", "sliding": "mimo2", "recurrent": "mamba", "hybrid": "lfm2"}


def works(context, operation):
    """Return whether an operation works on a freshly computed sequence."""
    with contextlib.suppress(UnsupportedError):  # encoders have no memory
        context.memory.clear()
    context.decode(Batch.from_tokens([i % 90 for i in range(context.n_batch)]))
    try:
        return operation(context.memory) is not False
    except UnsupportedError:
        return False


@pytest.mark.parametrize("column", [*KINDS, "encoder"])
def test_what_memory_can(root, tmp_path, column):
    rows = table(root / "docs/guide/batches.md", "remove a whole sequence")
    kind = KINDS.get(column, "bert")
    n = 64 if kind == "bert" else N
    params = {"n_batch": n, "n_ubatch": n if kind == "bert" else 16, "swa_full": False}
    with Model(random_models.write(tmp_path / "model.gguf", kind)) as model:
        context = Context(model, n_ctx=1024, n_seq_max=2, kv_unified=True, n_threads=1, **params)
        for row, operations in OPERATIONS.items():
            found = [works(context, operation) for operation in operations]
            said = {(True,): "yes", (False,): "no", (True, False): "near the end"}
            cell = rows[row][rows[""].index(column)]
            key = tuple(found) if found == [True, False] else tuple(set(found))
            assert cell == said[key], row
    assert set(rows) - {"", "---", "for example", "how to tell"} == set(OPERATIONS)


def test_all_samplers_are_in_the_table(root):
    rows = table(root / "docs/guide/sampling.md", "choose the best")
    public = {
        f"`{name}`"
        for name in llamacffi.__all__
        if isinstance(one := getattr(llamacffi, name), type)
        and issubclass(one, llamacffi.Sampler)
        and one is not llamacffi.Sampler
    }
    assert set(rows) - {"sampler", "---"} == public


def test_the_names_of_samplers_are_those_of_c(root, demo_path):
    rows = table(root / "docs/guide/sampling.md", "choose the best")
    made = {
        "AdaptiveP": (0.5,), "DRY": (0.5,), "Grammar": ('root ::= "a"',), "LogitBias": ({3: 1.0},),
        "MinP": (0.5,), "MinTokens": (3,), "Penalties": (64, 1.1), "Temp": (0.5,), "TopK": (3,),
        "TempExt": (0.5, 0.1), "TopNSigma": (1.0,), "TopP": (0.5,), "Typical": (0.5,),
        "XTC": (0.5,),
    }  # fmt: skip
    with Model(demo_path) as model:
        for row, (_, said) in rows.items():
            name = row.strip("`")
            if said.startswith("`") and name[0].isupper():
                before = [llamacffi.TopK(3)] if name == "Infill" else []  # it needs that
                one = getattr(llamacffi, name)(*made.get(name, ()))
                chain = llamacffi.SamplerChain(*before, one, vocab=model.vocab)
                assert f"`{chain.names[-1]}`" == said


def test_all_errors_are_in_a_table(root):
    rows = table(root / "docs/guide/errors.md", "ClosedError")
    named = {name.strip(" `") for row in rows for name in row.split(",")}
    errors = {name for name in llamacffi.__all__ if name.endswith("Error")}
    assert errors - named == set()


def test_all_reasons_to_finish_are_in_the_table(root):
    from typing import get_args

    from llamacffi.generation.loop import FinishReason

    rows = table(root / "docs/guide/generating.md", '"eog"')
    assert set(rows) - {"`finish_reason`", "---", "`None`"} == {
        f'`"{reason}"`' for reason in get_args(FinishReason)
    }


def test_every_public_name_is_in_the_reference(root):
    text = (root / "docs" / "reference.md").read_text()
    entries = {line.removeprefix("::: ") for line in text.splitlines() if line.startswith(":::")}
    apart = {"lib", "ffi", "enums", "constants"}  # of docs/raw.md
    missing = {name for name in llamacffi.__all__ if f"llamacffi.{name}" not in entries}
    assert missing == apart
