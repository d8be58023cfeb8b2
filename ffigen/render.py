"""`Api` to the files that are generated from it."""

from __future__ import annotations

import hashlib
import json
import keyword
from collections.abc import Mapping, Sequence
from pathlib import Path

import cffi
from cffi import recompiler
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import api as model
from .api import Api
from .lock import Facts
from .names import py_class, py_member
from .preprocess import GeneratorError, includes, own_headers
from .typing import Annotations, docstring, parameter_name

# What cdef and the recompiler raise for C that CFFI cannot express.
CFFI_ERRORS = (
    *(cffi.FFIError, cffi.CDefError, cffi.VerificationError),
    *(TypeError, NotImplementedError),
)


def plain_environment(templates: Path) -> Environment:
    """Return the jinja2 environment: a name that a template misspells is an error."""
    return Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


def environment(templates: Path, api: Api, names: Mapping[str, str]) -> Environment:
    """Return the environment of the templates that write an API."""
    env = plain_environment(templates)
    annotations = Annotations(api)
    env.globals.update(api=api, annotations=annotations)
    env.filters.update(
        argument=annotations.argument,
        c_value=lambda name: annotations.value(model.Name(name.replace("_", " ", 1))),
        declare=model.declare,
        declare_field=model.declare_field,
        docstring=docstring,
        definition_doc=definition_doc,
        flat_fields=lambda fields: list(model.flat_fields(fields)),
        function_doc=function_doc,
        kind=lambda one: type(one).__name__,
        literal=json.dumps,
        param_kind=lambda type_: param_kind(annotations, type_, names),
        param_type=lambda type_: param_type(annotations, type_, names),
        parameter_name=parameter_name,
        py_class=lambda name: py_class(name, names),
        py_member=py_member,
        value=annotations.value,
    )
    env.tests.update(keyword=keyword.iskeyword)
    return env


def param_kind(annotations: Annotations, type_: model.Type, names: Mapping[str, str]) -> str:
    """Name the kind of a parameter field; an enum by its Python class."""
    kind = annotations.parameter_kind(type_)
    return py_class(kind.removeprefix("enum:"), names) if kind.startswith("enum:") else kind


def param_type(annotations: Annotations, type_: model.Type, names: Mapping[str, str]) -> str:
    """Annotate a parameter field: an enum may be given by member, number or name."""
    kind = param_kind(annotations, type_, names)
    plain = {"bool": "bool", "int": "int", "float": "float"}
    if kind in ("pointer", "struct"):
        return "CData"
    return plain.get(kind) or f"enums.{kind} | int | str"


def function_doc(function: model.Function) -> str:
    """Return what the header says of a function, its C declaration first."""
    lines = [f"``{model.declare(function.type, function.name)}``", function.origin.doc]
    if function.deprecated is not None:
        lines.append(f"Deprecated: {function.deprecated}")
    return "\n\n".join(filter(None, lines))


def definition_doc(one: model.Struct | model.Enum) -> str:
    """Return what the header says of a struct or enum, its C name first."""
    return "\n\n".join(filter(None, (f"``{one.c_name}`` of {one.origin.header}.", one.origin.doc)))


def render(
    template: str, api: Api, templates: Path, names: Mapping[str, str] | None = None, **more: object
) -> str:
    """Render one template."""
    return environment(templates, api, names or {}).get_template(template).render(**more)


# Our own functions that only read or write memory, and run for each node of a graph or around each
# call: without a guard they take a few nanoseconds less.
NEVER_FAIL = ("llamacffi_abort_", "llamacffi_log_", "llamacffi_n_calls")


def guarded(api: Api) -> list[model.Function]:
    """Return the functions that get a guard: all but variadic ones and those that cannot fail.

    C++ cannot pass on the arguments of a variadic function, and CFFI calls those through libffi.
    """
    functions = (one for one in api.functions if not one.type.variadic)
    return [one for one in functions if not (one.origin.is_own and one.name.startswith(NEVER_FAIL))]


def module_source(api: Api, headers: Path) -> str:
    """Return the C source of ``_llama``, as CFFI makes it from the declarations.

    Raises:
        GeneratorError: CFFI cannot express one of the declarations.
    """
    templates = headers / "templates"
    check_lengths(api)
    preamble = render("module.c.j2", api, templates, guarded=guarded(api))
    ffi = cffi.FFI()
    try:
        ffi.cdef(render("cdef.h.j2", api, templates))
        ffi.cdef((headers / "callbacks.h").read_text(encoding="utf-8"))
        ffi.set_source("llamacffi._llama", preamble)
        compiler = recompiler.Recompiler(ffi, "llamacffi._llama")
        compiler.collect_type_table()
        compiler.collect_step_tables()
    except CFFI_ERRORS as error:
        raise GeneratorError(f"CFFI does not take what the headers declare: {error}") from error
    text = StringSink()
    compiler.write_source_to_f(text, preamble)
    return "".join(text.parts)


def check_lengths(api: Api) -> None:
    """Refuse array lengths that CFFI would have to know, and would guess.

    Raises:
        GeneratorError: Behind a pointer, or in a struct without a name, one names an enumerator.
    """
    for one in api.declarations:
        types: list[model.Type] = []
        if isinstance(one, model.Struct) and one.record.fields is not None:
            types = [model.Inline(one.record)]
        elif isinstance(one, model.Typedef | model.Function):
            types = [one.type]
        arrays = (found for type_ in types for found in model.closed_arrays(type_, is_open=True))
        for array in arrays:
            if array.symbolic:
                raise GeneratorError(
                    f"{one.origin.header}:{one.origin.line}: {one.name} has an array of length "
                    f"{array.length} in a place where CFFI must know the number"
                )


class StringSink:
    """The little of a text file that CFFI's recompiler needs."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, text: str) -> None:
        """Keep ``text``."""
        self.parts.append(text)


PARAMS_SUFFIX = "_params"


def generate(
    api: Api,
    headers: Path,
    out: Path,
    package: Path,
    surface: Mapping[str, Mapping[str, str]],
    *,
    pinned: Facts | None = None,
    missing: Sequence[object] = (),
) -> list[Path]:
    """Write every generated file.

    Args:
        api: The model.
        headers: The project's ``headers/`` directory.
        out: Directory for what is compiled.
        package: Directory for the Python that is generated into the package.
        surface: What headers/surface.toml says: ``names``, ``aliases`` and ``annotations``.
        pinned: The facts of the pinned llama.cpp, of which ``api`` may lack some; None if it is it.
        missing: What it lacks, or has otherwise.

    Returns:
        The files whose text changed.
    """
    templates = headers / "templates"
    params = [one for one in api.structs if one.name.endswith(PARAMS_SUFFIX) and one.record.fields]
    names, annotations = surface["names"], surface["annotations"]
    check_names(api, params, names)
    check_annotations(params, annotations, pinned)
    generated = package / "_generated"
    cdef = render("cdef.h.j2", api, templates)
    digest = hashlib.sha256(cdef.encode()).hexdigest()
    texts = {
        out / "_llama.c": module_source(api, headers),
        out / "guards.cpp": render(
            "guards.cpp.j2", api, templates, guarded=guarded(api), digest=digest
        ),
        out / "llamacffi.h": render(
            "llamacffi.h.j2", api, templates, headers=includes(own_headers(headers))
        ),
        out / "has.h": render("has.h.j2", api, templates, missing=missing),
        package / "_llama.pyi": render("_llama.pyi.j2", api, templates, names),
        generated / "__init__.py": GENERATED_INIT.format(digest),
        generated / "cdef.h": cdef,
        generated / "enums.py": render("enums.py.j2", api, templates, names),
        generated / "constants.py": render("constants.py.j2", api, templates, names),
        generated / "params.py": render("params.py.j2", api, templates, names, structs=params),
        generated / "omitted.py": render("omitted.py.j2", api, templates, names),
    }
    for struct in params:
        if struct.name in surface["aliases"]:
            path = generated / f"{struct.name.removeprefix('llama_')}.py"
            texts[path] = typed_params(struct, api, templates, surface)
    return [path for path, text in texts.items() if write_if_changed(path, text)]


def typed_params(
    struct: model.Struct, api: Api, templates: Path, surface: Mapping[str, Mapping[str, str]]
) -> str:
    """Render the TypedDict of a parameter struct."""
    room, _, aliases = surface["aliases"][struct.name].rpartition(".")
    return render(
        "typed_params.py.j2",
        api,
        templates,
        surface["names"],
        struct=struct,
        room=room,
        aliases=aliases,
        field_types=surface["annotations"],
    )


def check_names(api: Api, params: list[model.Struct], names: Mapping[str, str]) -> None:
    """Refuse C names of which no Python can be made.

    Raises:
        GeneratorError: Two enums would be one class, or a parameter is a keyword of Python.
    """
    classes: dict[str, str] = {}
    for enum in api.enums:
        other = classes.setdefault(py_class(enum.name, names), enum.name)
        if other != enum.name:
            raise GeneratorError(
                f"enum {enum.name} and enum {other} would both be the class "
                f"{py_class(enum.name, names)}; name one of them in headers/surface.toml"
            )
    for struct in params:
        for one in model.flat_fields(struct.record.fields):
            if keyword.iskeyword(one.name):
                raise GeneratorError(f"{struct.c_name}.{one.name} is a keyword of Python")


def check_annotations(
    params: list[model.Struct], annotations: Mapping[str, str], pinned: Facts | None
) -> None:
    """Refuse an annotation in headers/surface.toml of a field that no header has.

    One that the pinned headers have may be missing from those of another llama.cpp.

    Raises:
        GeneratorError: The field does not exist any more.
    """
    fields = {
        f"{struct.name}.{one.name}"
        for struct in params
        for one in model.flat_fields(struct.record.fields)
    } | set(pinned.names() if pinned else ())
    for name in annotations:
        if name not in fields:
            raise GeneratorError(f"headers/surface.toml annotates {name}, which no header has")


GENERATED_INIT = """\
# Generated by build_ffi.py from the llama.cpp headers.  Do not edit.
\"\"\"Python made from llama.cpp's headers.\"\"\"

from .._native import check_generated

check_generated("{}")
"""


def write_if_changed(path: Path, text: str) -> bool:
    """Write ``text`` unless ``path`` holds it already, so that builds stay incremental."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True
