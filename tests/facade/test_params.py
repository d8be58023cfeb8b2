"""Every parameter lands in C's struct, or raises; nothing is ignored."""

from __future__ import annotations

import math

import pytest

from llamacffi import ArgumentError, Context, enums, ffi, lib
from llamacffi._core.params import fill
from llamacffi._generated.params import KINDS
from llamacffi.context import params as context_params
from llamacffi.model import params as model_params

STRUCTS = {
    "llama_model_params": (lib.llama_model_default_params, model_params.OWNED),
    "llama_context_params": (lib.llama_context_default_params, context_params.OWNED),
}
# What takes more than a cdata; that is tested where it is from.
FIELD_CONVERTERS = {"llama_model_params": model_params.MODEL_CONVERTERS}


def fields(*kinds: str) -> list[tuple[str, str, str]]:
    """Return struct, field and kind of all that a user can give; "enum" is any enum."""
    return [
        (struct, field, kind)
        for struct, (_, owned) in STRUCTS.items()
        for field, kind in KINDS[struct].items()
        if field not in owned and ("enum" if kind in enums.ENUMS else kind) in kinds
    ]


def filled(struct: str, **params: object) -> object:
    """Return a fresh struct with these parameters."""
    default, owned = STRUCTS[struct]
    made = ffi.new(f"struct {struct} *", default())
    keep = fill(made, struct, params, owned, FIELD_CONVERTERS.get(struct))
    assert len(keep) == len(params)
    return made


def two_values(struct: str, field: str, kind: str) -> list[object]:
    """Return two values that are not the same in C."""
    if kind == "bool":
        return [False, True]
    if kind == "int":
        return [3, 5]
    if kind == "float":
        return [0.25, 2.5]
    if kind == "pointer":
        pointer = ffi.cast(ffi.typeof(getattr(filled(struct), field)), 4096)
        return [None, pointer]
    return list(enums.ENUMS[kind])[:2]


@pytest.mark.parametrize("struct", STRUCTS)
def test_the_fields_are_those_of_the_struct(struct):
    assert list(KINDS[struct]) == [name for name, _ in ffi.typeof(f"struct {struct}").fields]


@pytest.mark.parametrize(
    ("struct", "field", "kind"), fields("bool", "int", "float", "enum", "pointer")
)
def test_each_field_lands_in_the_struct(struct, field, kind):
    others = [name for name in KINDS[struct] if name != field]
    default = filled(struct)
    for value in two_values(struct, field, kind):
        made = filled(struct, **{field: value})
        assert getattr(made, field) == (ffi.NULL if value is None else value)
        for name in others:
            before, after = getattr(default, name), getattr(made, name)
            assert before == after or (math.isnan(before) and math.isnan(after)), name


WRONG_TYPES = {
    "bool": [None, "yes", 2, 0.5, []],
    "int": [None, "3", 3.0, [], True],
    "float": [None, "0.5", [], 1j],
    "pointer": [0, "x", b"x", [], ffi.cast("int", 0)],
    "enum": [None, 1.5, [], b"none"],
}


# What no converter takes either.
NO_POINTER = [0, 1.5, ffi.cast("int", 0), object()]


def test_each_field_refuses_other_types():
    for struct, field, kind in fields("bool", "int", "float", "enum", "pointer"):
        converted = field in FIELD_CONVERTERS.get(struct, ())
        for value in NO_POINTER if converted else WRONG_TYPES.get(kind, WRONG_TYPES["enum"]):
            with pytest.raises(TypeError, match=field):
                filled(struct, **{field: value})


OUT_OF_RANGE = {
    "int": [2**64, -(2**63) - 1, 10**20],
    "float": [math.nan, math.inf, -math.inf, 1e39, 10**400],
    "enum": ["no such name", "", 10**6, -77],
}


LIMITS = {"int": r"between -?\d+ and \d+", "float": "a finite 32-bit float"}


def test_each_field_refuses_other_values():
    for struct, field, kind in fields("int", "float", "enum"):
        for value in OUT_OF_RANGE.get(kind, OUT_OF_RANGE["enum"]):
            limits = LIMITS.get(kind, "one of .*")
            with pytest.raises(ArgumentError, match=f"^{field} must be {limits}, not "):
                filled(struct, **{field: value})


def test_limits_that_are_narrower_than_the_type(context):
    for field, least, most in (
        ("n_ctx", 0, 2**31 - 1),
        ("n_batch", 1, 2**31 - 1),
        ("n_seq_max", 1, lib.llama_max_parallel_sequences()),
        ("n_threads", 1, lib.GGML_MAX_N_THREADS),
    ):
        for value in (least - 1, -4, most + 1, 2**32, 10**20):
            message = f"^{field} must be between {least} and {most}, not {value}$"
            with pytest.raises(ArgumentError, match=message):
                Context(context.model, **{field: value})


def test_pointers_to_other_things_are_refused():
    for struct, field, _ in fields("pointer"):
        if ffi.typeof(getattr(filled(struct), field)) is ffi.typeof("void *"):
            continue  # takes a pointer to anything
        with pytest.raises(TypeError, match=field):
            filled(struct, **{field: ffi.new("struct llama_batch *")})


def test_enums_by_member_number_and_name():
    for struct, field, kind in fields("enum"):
        for member in enums.ENUMS[kind]:
            for value in (member, int(member), member.name, member.name.lower()):
                assert getattr(filled(struct, **{field: value}), field) == member


def test_numbers_of_numpy():
    import numpy as np

    made = filled("llama_context_params", n_ctx=np.int64(77), rope_freq_base=np.float32(0.5))
    assert (made.n_ctx, made.rope_freq_base) == (77, 0.5)
    for value in (np.True_, np.array(False)):
        assert filled("llama_context_params", swa_full=value).swa_full == value
    with pytest.raises(TypeError, match="swa_full"):
        filled("llama_context_params", swa_full=np.array([True, True]))


@pytest.mark.parametrize(
    ("struct", "wrong", "near"),
    [
        ("llama_model_params", "n_gpu_layer", "n_gpu_layers"),
        ("llama_context_params", "nctx", "n_ctx"),
        ("llama_context_params", "flash_attn", "flash_attn_type"),
    ],
)
def test_an_unknown_parameter_names_the_nearest(struct, wrong, near):
    with pytest.raises(TypeError, match=f"unknown parameter '{wrong}'; did you mean '{near}'"):
        filled(struct, **{wrong: 1})


def test_an_unknown_parameter_with_none_near_lists_all():
    with pytest.raises(TypeError, match=r"the parameters are n_ctx, n_batch.*kv_unified") as caught:
        filled("llama_context_params", zzzzzz=1)
    assert "abort_callback" not in str(caught.value)


@pytest.mark.parametrize(
    ("struct", "field"), [(name, field) for name, (_, owned) in STRUCTS.items() for field in owned]
)
def test_fields_that_the_facade_owns_are_refused(struct, field):
    with pytest.raises(TypeError, match=f"'{field}' cannot be given: "):
        filled(struct, **{field: None})
