"""What only the C compiler knows: sizes, offsets and values, asked with a small program."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from .api import Api, Field, Struct, flat_fields
from .preprocess import PreprocessError, bound_headers, compiler_command, include_paths
from .render import render


def measure(api: Api, headers: Path, llama_cpp: Path) -> dict[str, str]:
    """Compile and run a program that prints every size, offset and value of ``api``.

    Returns:
        For ``struct X`` its size, for ``X.field`` its offset, for the name of an enumerator or
        constant its value as C would write it.
    """
    probe = render(
        *("probe.c.j2", api, headers / "templates"),
        structs=layouts(api),
        headers=bound_headers(headers),
    )
    with tempfile.TemporaryDirectory(prefix="llamacffi-") as directory:
        source, program = Path(directory, "probe.c"), Path(directory, "probe")
        source.write_text(probe, encoding="utf-8")
        include = [f"-I{path}" for path in (headers, *include_paths(llama_cpp))]
        command = [*compiler_command(), "-w", "-O0", *include, str(source), "-o", str(program)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise PreprocessError(f"the layout probe does not compile:\n{result.stderr.strip()}")
        output = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return dict(line.split("\t", 1) for line in output.splitlines())


def layouts(api: Api) -> list[tuple[Struct, list[Field]]]:
    """Return the structs whose fields are known, with the fields that can be named."""
    return [
        (one, list(flat_fields(one.record.fields)))
        for one in api.structs
        if one.record.fields is not None
    ]
