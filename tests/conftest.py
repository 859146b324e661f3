from __future__ import annotations

import importlib
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Protocol

import pytest

from alignkit import plugins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class InstallPlugin(Protocol):
    def __call__(self, distribution: str, source: str, *, module: str = ..., group: str = ..., name: str = ...) -> Path:
        """Returns the folder to put on PYTHONPATH for other processes."""


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallPlugin]:
    """Installs a one-file distribution with one entry point, in a folder that is on sys.path for this test only."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def install(
        distribution: str, source: str, *, module: str = "", group: str = plugins.GROUP, name: str = ""
    ) -> Path:
        module = module or distribution.replace("-", "_")
        (site / f"{module}.py").write_text(dedent(source))
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name or module} = {module}\n")
        importlib.invalidate_caches()
        plugins.registry.cache_clear()
        return site

    yield install
    for added in set(sys.modules) - before:
        if (getattr(sys.modules[added], "__file__", None) or "").startswith(str(site)):
            del sys.modules[added]
    plugins.registry.cache_clear()
