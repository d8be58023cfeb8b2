"""``llamacffi info`` and ``--version``."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Cli


def test_json_agrees_with_the_package(cli: Cli, environment: dict[str, str], root: Path) -> None:
    import llamacffi

    done = cli("info", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    info = json.loads(done.stdout)
    assert info["versions"]["llamacffi"] == llamacffi.__version__
    commit = llamacffi.ffi.string(llamacffi.lib.llamacffi_built_commit()).decode()
    assert info["versions"]["commit"] == commit
    made_from = llamacffi.build_info()
    assert (info["build"]["commit"], info["build"]["layout"]) == (commit, made_from.layout)
    assert info["backends"] == llamacffi.backend.backends()
    changing = {"memory_free": 0}
    assert [device | changing for device in info["devices"]] == [
        {name: getattr(device, name) for name in info["devices"][0]} | changing
        for device in llamacffi.devices()
    ]
    assert info["cpu"]["features"] == [
        name for name, has in llamacffi.cpu_features().items() if has
    ]
    assert Path(info["paths"]["module"]).is_file()
    assert Path(info["paths"]["libraries"]).is_dir()
    assert info["paths"]["cache"] == str(Path(environment["XDG_CACHE_HOME"]) / "llamacffi")
    lock = (root / "headers" / "api.lock").read_text().splitlines()
    functions = [one for one in lock if one.startswith("function ") and "llamacffi_" not in one]
    assert info["api"]["functions"] == len(functions) > 900


def test_text_and_json_have_the_same_content(cli: Cli) -> None:
    text = cli("info").stdout
    info = json.loads(cli("info", "--json").stdout)
    for section in info:
        assert f"{section}:\n" in text
    for value in (*info["versions"].values(), *info["paths"].values(), *info["cpu"]["features"]):
        assert str(value) in text
    for device in info["devices"]:
        assert device["description"] in text
    assert "GiB free" in text


def test_version(cli: Cli) -> None:
    versions = json.loads(cli("info", "--json").stdout)["versions"]
    done = cli("--version")
    assert done.returncode == 0
    assert done.stdout == (
        f"llamacffi {versions['llamacffi']} "
        f"(llama.cpp {versions['llama.cpp']}, commit {versions['commit']})\n"
    )


def test_help_needs_neither_numpy_nor_a_backend(cli: Cli, run_python: Cli) -> None:
    done = run_python(
        """
        import sys
        from llamacffi.cli import main
        try:
            main(["run", "--help"])
        except SystemExit as stop:
            assert stop.code == 0
        heavy = {"numpy", "logging.config"}
        heavy |= {"llamacffi.context.context", "llamacffi.model.model"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        """
    )
    assert done.returncode == 0, done.stderr
    assert "--temp" in done.stdout
    for command in ("run", "tokenize", "info"):
        assert command in cli("--help").stdout
