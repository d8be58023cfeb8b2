"""The command that runs a module of this package in another Python process, and nothing else."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec

# The code of the other process.  It loads the package from the same place as this process, which
# may not be on its path; other imports use its own path first, then the place of CFFI in this one.
_CODE = """\
import importlib.util, json, runpy, sys
where = json.loads(sys.argv.pop(1))
sys.path += [one for one in where["path"] if one not in sys.path]
spec = importlib.util.spec_from_file_location(
    where["package"], where["file"], submodule_search_locations=where["parts"]
)
package = sys.modules[where["package"]] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
runpy.run_module(where["module"], run_name="__main__", alter_sys=True)
"""


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package in a process of its own.

    Python is isolated (``-I``): it searches neither the current directory nor ``PYTHONPATH``, so a
    file there that has the name of an imported module does not run.

    Args:
        module: The full name of the module.
        *arguments: Its command-line arguments.
    """
    name = module.partition(".")[0]
    package = sys.modules[name]
    assert package.__file__ is not None
    needed = find_spec("_cffi_backend")
    where = {
        "package": name,
        "file": os.path.abspath(package.__file__),
        "parts": [os.path.abspath(one) for one in package.__path__],
        "path": [os.path.dirname(os.path.abspath(needed.origin))]
        if needed is not None and needed.origin is not None
        else [],
        "module": module,
    }
    return [sys.executable, "-I", "-c", _CODE, json.dumps(where), *arguments]
