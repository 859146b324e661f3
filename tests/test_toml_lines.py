"""Lines of keys: counted by hand in a document with every construct that could mislead a line counter."""

from __future__ import annotations

import pytest

from alignkit.recipe.toml_lines import key_lines, split_key

DOCUMENT = '''# seed = 0
seed = 1
[policy] # table
model = "a#b" # [
lora.r = 8
"odd.key" = [1, # ]
  { a = 2 }, "]", '[',
]
text = """
kl = 3
[not.a.table]
""" # end
x = { y = [1,
z
2] }
[optimizer.for.dpo]
beta = 0.1
[[reward.sources]]
plugin = "a"
[[reward.sources]]
plugin = 'b'
'''


def test_lines_of_keys_and_tables() -> None:
    assert key_lines(DOCUMENT) == {
        ("seed",): 2,
        ("policy",): 3,
        ("policy", "model"): 4,
        ("policy", "lora", "r"): 5,
        ("policy", "odd.key"): 6,
        ("policy", "text"): 9,
        ("policy", "x"): 13,
        ("optimizer", "for", "dpo"): 16,
        ("optimizer", "for", "dpo", "beta"): 17,
        ("reward", "sources", "0"): 18,
        ("reward", "sources", "0", "plugin"): 19,
        ("reward", "sources", "1"): 20,
        ("reward", "sources", "1", "plugin"): 21,
    }


def test_dotted_keys() -> None:
    assert split_key('preferences.columns."my.column"') == ("preferences", "columns", "my.column")
    for wrong in ("", "a..b", "a b", "a = 1\nb"):
        with pytest.raises(ValueError, match="not a dotted key"):
            split_key(wrong)
