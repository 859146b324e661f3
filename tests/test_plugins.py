"""Discovery: what is found, what is refused, and that one plugin's failure stays its own."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from alignkit import hookspecs
from alignkit.errors import InputError, PluginError
from alignkit.interfaces import INTERFACE_VERSION
from alignkit.plugins import HOOKS, ROLES, Registry, registry
from alignkit.versions import FIRST_PARTY

if TYPE_CHECKING:
    from conftest import InstallPlugin

REWARD = """
    from dataclasses import dataclass
    from alignkit import Config, RewardSource, hookimpl

    ALIGNKIT_INTERFACE = {version}

    @dataclass(frozen=True, kw_only=True)
    class Options(Config):
        weight: float = 1.0

    class Reward(RewardSource[Options]):
        Config = Options

        def score(self, groups):
            return [[self.config.weight for _ in group.responses] for group in groups]

    @hookimpl
    def register_reward_sources(register):
        register("{name}", {target}, config=Options)
"""


def reward_source(name: str = "steady", *, version: int = INTERFACE_VERSION, target: str = "Reward") -> str:
    return REWARD.format(name=name, version=version, target=target)


def test_a_registered_component_is_found_by_name_and_imported_on_use(install_plugin: InstallPlugin) -> None:
    install_plugin("steady-reward", reward_source(target='"steady_reward:Reward"'))
    found = registry().get("reward", "steady")
    assert (found.role, found.name, found.distribution) == ("reward", "steady", "steady-reward")
    assert found.target == "steady_reward:Reward"
    assert registry().load("reward", "steady").__name__ == "Reward"
    assert "steady" in registry().names("reward")
    assert "steady" not in registry().names("optimizer")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_that_nobody_has", "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("x = (", "SyntaxError"),
        ("ALIGNKIT_INTERFACE = 1", "registers nothing"),
        (reward_source("bad name"), "a name may have"),
        (reward_source(target="Reward()"), "the target must be a class"),
        (reward_source().replace("config=Options", "config=dict"), "config must be a subclass of alignkit.Config"),
        (
            reward_source().replace("register_reward_sources", "register_rewards"),
            "unknown hook 'register_rewards': did you mean 'register_reward_sources'?",
        ),
        (reward_source() + '        register("steady", Reward, config=Options)\n', "registered twice"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_error_and_the_others_work(
    install_plugin: InstallPlugin, source: str, reason: str
) -> None:
    install_plugin("good-reward", reward_source("good"))
    install_plugin("bad-reward", source)
    broken = {b.distribution: b.error for b in registry().broken}
    assert reason in broken["bad-reward"]
    assert "good-reward" not in broken
    assert registry().load("reward", "good").__name__ == "Reward"
    with pytest.raises(InputError, match="bad_reward failed to load"):
        registry().get("reward", "steady")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            reward_source(version=INTERFACE_VERSION + 1),
            f"needs plugin interface {INTERFACE_VERSION + 1}, but this alignkit",
        ),
        (reward_source(version=0), "needs plugin interface 0, but this alignkit"),
    ],
)
def test_another_interface_version_is_refused_alone(install_plugin: InstallPlugin, source: str, reason: str) -> None:
    install_plugin("good-reward", reward_source("good"))
    install_plugin("future-reward", source)
    assert [reason in b.error for b in registry().broken if b.distribution == "future-reward"] == [True]
    assert "good" in registry().names("reward")
    assert "steady" not in registry().names("reward")


def test_a_plugin_that_declares_no_version_is_taken_for_the_first(install_plugin: InstallPlugin) -> None:
    install_plugin("good-reward", reward_source("good").replace("ALIGNKIT_INTERFACE = 1", ""))
    assert registry().get("reward", "good").distribution == "good-reward"


def test_a_name_may_have_a_plus(install_plugin: InstallPlugin) -> None:
    install_plugin("plus-reward", reward_source("steady++"))
    assert registry().get("reward", "steady++").distribution == "plus-reward"


def test_strangers_that_share_a_name_must_be_told_apart(install_plugin: InstallPlugin) -> None:
    install_plugin("first-stranger", reward_source())
    install_plugin("second-stranger", reward_source())
    with pytest.raises(InputError, match=r"several packages .* first-stranger, second-stranger") as raised:
        registry().get("reward", "steady")
    assert raised.value.fix == "choose first-stranger:steady or second-stranger:steady"
    assert registry().get("reward", "second-stranger:steady").distribution == "second-stranger"
    assert registry().get("reward", "Second_Stranger:steady").distribution == "second-stranger"
    assert {"first-stranger:steady", "second-stranger:steady"} <= set(registry().names("reward"))


def test_the_projects_own_plugin_wins_over_a_stranger(
    install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.plugins.FIRST_PARTY", (*FIRST_PARTY, "alignkit-own"))
    install_plugin("a-stranger", reward_source())
    install_plugin("alignkit-own", reward_source())
    assert registry().get("reward", "steady").distribution == "alignkit-own"
    assert registry().get("reward", "a-stranger:steady").distribution == "a-stranger"


def test_an_unknown_name_suggests_the_closest(install_plugin: InstallPlugin) -> None:
    install_plugin("steady-reward", reward_source())
    with pytest.raises(InputError, match="no reward plugin 'steddy'") as raised:
        registry().get("reward", "steddy")
    assert raised.value.fix == "did you mean 'steady'?"


@pytest.mark.parametrize(
    ("target", "error", "reason"),
    [
        ('"a_module_that_nobody_has:Reward"', PluginError, "there is no module 'a_module_that_nobody_has'"),
        ('"steady_reward.sub.deep:Reward"', PluginError, "there is no module 'steady_reward.sub'"),
        ('"steady_reward:Missing"', PluginError, "AttributeError: module 'steady_reward' has no attribute 'Missing'"),
        ("Options", PluginError, "is not a subclass of RewardSource"),
    ],
)
def test_a_target_that_cannot_be_used_is_attributed_to_its_plugin(
    install_plugin: InstallPlugin, target: str, error: type[Exception], reason: str
) -> None:
    install_plugin("steady-reward", reward_source(target=target))
    registration = registry().get("reward", "steady")
    with pytest.raises(error, match="steady-reward:steady") as raised:
        registration.load()
    assert reason in str(raised.value)
    assert "pip install" not in str(raised.value)


def test_an_algorithm_that_does_not_say_what_it_learns_from_is_named(install_plugin: InstallPlugin) -> None:
    source = """
        from alignkit import Optimizer, hookimpl

        class Mine(Optimizer):
            def loss(self, batch):
                return -batch.token_mean(self.policy.forward(batch).logprobs), {}

        @hookimpl
        def register_optimizers(register):
            register("mine", Mine)
    """
    install_plugin("my-algorithm", source)
    with pytest.raises(PluginError, match=r"my-algorithm:mine: Mine doesn't say what it `consumes` \(a Feed\)"):
        registry().load("optimizer", "mine")


def test_a_package_that_a_target_needs_is_named_with_its_fix(
    install_plugin: InstallPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy_module.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(str(tmp_path))
    install_plugin("steady-reward", reward_source(target='"needy_module:Reward"'))
    with pytest.raises(InputError, match="needs the package 'a_package_that_nobody_has'") as raised:
        registry().get("reward", "steady").load()
    assert raised.value.fix == "pip install a_package_that_nobody_has"


def test_an_unknown_name_says_which_of_the_projects_distributions_are_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("alignkit.plugins.FIRST_PARTY", (*FIRST_PARTY, "alignkit-absent"))
    with pytest.raises(InputError, match=r"none is available \(not installed: alignkit-absent\)"):
        Registry().get("optimizer", "ppo")


def test_a_traceback_of_a_broken_plugin_is_shown_on_demand(
    install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNKIT_TRACEBACK", "1")
    install_plugin("bad-reward", "class Halt(BaseException): pass\nraise Halt('no further')")
    assert [b.error for b in registry().broken if b.distribution == "bad-reward"] == ["Halt: no further"]
    assert "Traceback" in capsys.readouterr().err


def test_discovery_imports_neither_torch_nor_transformers_nor_pydantic() -> None:
    code = (
        "import sys, json; from alignkit.plugins import registry; registry();"
        "print(json.dumps([name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules]))"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) == []


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_registers_for_its_role(install_plugin: InstallPlugin, hook: str) -> None:
    install_plugin("steady-reward", reward_source().replace("register_reward_sources", hook))
    assert registry().get(HOOKS[hook], "steady").role == HOOKS[hook]
    others = set(ROLES) - {HOOKS[hook]}
    assert not any("steady" in registry().names(role) for role in others)


def test_every_hook_is_documented_with_its_signature_and_has_a_role() -> None:
    hooks = {name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("register_")}
    assert set(HOOKS) == hooks
    assert set(HOOKS.values()) == set(ROLES)
    documented = (Path(__file__).parent.parent / "docs/how-to/plugins.md").read_text()
    for name in hooks:
        hook = getattr(hookspecs, name)
        assert f"{name}(register)" in documented
        assert inspect.getdoc(hook) in documented, f"docs/how-to/plugins.md lacks the example call of {name}"
