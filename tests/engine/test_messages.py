import pytest

from training.engine.messages import markdown_text, naming_arguments, one_line, shorten


def test_values_are_shortened_without_being_written_out():
    bomb = ["x"] * 9
    for _ in range(30):
        bomb = [bomb] * 9
    values = [bomb, "x" * 10**6, 10**6000, dict.fromkeys(range(1000), "y" * 1000), [bomb] * 10**6, b"z" * 10**6]
    assert all(len(shorten(value)) < 3000 for value in values)
    assert shorten(10**6000) == "a value of int" and shorten("a b") == "'a b'" and shorten([1, None]) == "[1, None]"


def test_a_message_is_one_line():
    assert one_line("a\n b\t c\r\n") == "a b c"
    text = one_line("a" * 10**6 + "z", limit=20)
    assert text == "aaaaaaaaaa ... aaaaaaaaaz"


def test_markdown_is_escaped():
    assert markdown_text("a|b\n<c> `d` [e](f) *g* \\ & h_i") == (r"a\|b &lt;c&gt; \`d\` \[e\](f) \*g\* \\ &amp; h_i")


def test_arguments_are_named_as_they_are_typed():
    with pytest.raises(ValueError, match="^`input` must be a path like `fps`, got 'poses'$"):
        with naming_arguments(poses="input"):
            raise ValueError("`poses` must be a path like `fps`, got 'poses'")
