from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Protocol

import pytest

from alignkit import plugins
from alignkit.errors import InputError
from alignkit.recipe import reading
from alignkit.recipe.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from importlib.metadata import EntryPoint

    from alignkit.recipe.resolved import Resolved


HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "plugins" / "alignkit-judge" / "tests")]


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a demo of few steps."""
    from demo_files import make_small_demo

    return make_small_demo(tmp_path_factory.mktemp("demo") / "demo")


@contextmanager
def installed_in(site: Path) -> Iterator[None]:
    """This process finds what is installed in a folder, and forgets it again."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        plugins.registry.cache_clear()
        yield
    for added in set(sys.modules) - before:
        if (getattr(sys.modules[added], "__file__", None) or "").startswith(str(site)):
            del sys.modules[added]
    plugins.registry.cache_clear()


class InstallPlugin(Protocol):
    def __call__(
        self, distribution: str, source: str, *, group: str = ..., name: str = ..., attribute: str = ...
    ) -> Path:
        """Returns the folder to put on PYTHONPATH for other processes."""


@pytest.fixture
def install_plugin(tmp_path: Path) -> Iterator[InstallPlugin]:
    """Installs a one-file distribution with one entry point, in a folder that is on sys.path for this test only."""
    site = tmp_path / "site"
    site.mkdir()

    def install(
        distribution: str, source: str, *, group: str = plugins.GROUP, name: str = "", attribute: str = ""
    ) -> Path:
        module = distribution.replace("-", "_")
        target = f"{module}:{attribute}" if attribute else module
        (site / f"{module}.py").write_text(dedent(source))
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name or module} = {target}\n")
        importlib.invalidate_caches()
        plugins.registry.cache_clear()
        return site

    with installed_in(site):
        yield install


@pytest.fixture
def fake_plugin(install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin of tests/fakes and no other; returns the folder to put on PYTHONPATH."""
    site = install_plugin("fake-plugin", (Path(__file__).parent / "fakes/fake_plugin.py").read_text())

    def entry_points_of_site(group: str) -> list[EntryPoint]:
        found = [point for distribution in distributions(path=[str(site)]) for point in distribution.entry_points]
        return [point for point in found if point.group == group]

    monkeypatch.setattr(plugins, "entry_points", entry_points_of_site)
    return site


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe of tests/fakes, as `recipe.toml` in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("recipe.toml").write_text((Path(__file__).parent / "fakes/recipe.toml").read_text())
    return Path("recipe.toml")


class Resolve(Protocol):
    def __call__(
        self, path: Path | None = ..., overrides: Sequence[str] = ..., flags: Mapping[str, str] | None = ...
    ) -> Resolved: ...


class Refusal(Protocol):
    def __call__(
        self, path: Path | None = ..., overrides: Sequence[str] = ..., flags: Mapping[str, str] | None = ...
    ) -> InputError: ...


@pytest.fixture
def resolve() -> Resolve:
    """Resolves a recipe with the plugins that are installed."""

    def resolved(
        path: Path | None = None, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None
    ) -> Resolved:
        return reading.resolve(load_recipe(path, flags=flags or {}, overrides=overrides), plugins.registry())

    return resolved


@pytest.fixture
def refusal(resolve: Resolve) -> Refusal:
    """The error with which a recipe is refused."""

    def refused(
        path: Path | None = None, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None
    ) -> InputError:
        with pytest.raises(InputError) as raised:
            resolve(path, overrides, flags)
        assert raised.value.exit_code == 2
        return raised.value

    return refused
