"""The function behind `module:function`, and one clear error for each way in which the name can be wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from alignkit.errors import InputError
from alignkit.recipe.functions import check_function, load_function

if TYPE_CHECKING:
    from pathlib import Path


def test_finds_functions_classes_and_methods() -> None:
    assert load_function("math:sqrt") is math.sqrt
    assert load_function("pathlib:Path.cwd")().is_dir()


def test_current_directory_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_cwd.py").write_text("def politeness(prompts, completions): return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert load_function("rewards_of_cwd:politeness")([], []) == [1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sqrt", "write module:function"),
        ("math:", "write module:function"),
        (":sqrt", "write module:function"),
        ("my rewards:f", "write module:function"),
        ("my_rewards.py:f", "my_rewards.py is a file, not a module\n  fix: write my_rewards:f;"),
        ("rewards/mine.py:f", "fix: write mine:f;"),
        ("mine.py:", "fix: write mine:function;"),
        ("no_such_module_anywhere:f", "no module 'no_such_module_anywhere'"),
        ("math:sqrtt", "did you mean 'sqrt'"),
        ("math:pi", "math:pi is float, not a function"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(InputError, match=r"reward\.function") as caught:
        check_function(name, where="reward.function")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_dependency", "needs the module 'no_such_dependency'"),
        ("1 / 0", "importing broken_rewards failed: ZeroDivisionError: division by zero"),
        ("def f(:", "importing broken_rewards failed: SyntaxError"),
    ],
)
def test_module_that_fails_to_import(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_rewards.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError) as caught:
        load_function("broken_rewards:f")
    assert message in str(caught.value)
