"""The authors' strings, and what is said about others."""

import pytest

from attnprobe.core.errors import InputError
from attnprobe.models.initialisers.names import SKIP, TIMM, Impulse, Mimetic, parse


def test_the_authors_strings_mean_what_they_mean_there():
    assert parse("impulse3") == Impulse(3)
    assert parse("impulse15") == Impulse(15)
    assert parse("mimetic0.7_0.7") == Mimetic(0.7, 0.7)
    assert parse("mimetic-.4_2") == Mimetic(-0.4, 2.0)


@pytest.mark.parametrize("name", [*TIMM, SKIP])
def test_strings_of_timm_come_back(name):
    assert parse(name) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("impulse4", "has no centre; use impulse5"),
        ("impulse", "as in 'impulse3'"),
        ("impulse-3", "as in 'impulse3'"),
        ("impulse03", "as in 'impulse3'"),
        ("mimetic", "two numbers"),
        ("mimetic0.7", "two numbers"),
        ("mimetic0.7_nan", "two numbers"),
        ("mimetic1_2_3", "two numbers"),
        ("impuls3", "Did you mean 'impulse3'?"),
    ],
)
def test_other_strings_are_refused_with_a_hint(name, said):
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        parse(name)
