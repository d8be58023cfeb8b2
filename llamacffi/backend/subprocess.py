"""Python processes that run a module of this package, and no file that happens to lie around."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec

# What such a process runs.  The package is loaded from where it is here, which need not be on the
# path there; what it imports is looked for there first, and last where it was found here.
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

    Python is isolated (``-I``): neither the current directory nor ``PYTHONPATH`` is searched, so
    that a file there, which is called as a module that is imported, never runs.

    Args:
        module: Its whole name.
        arguments: What it finds in ``sys.argv``.
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
