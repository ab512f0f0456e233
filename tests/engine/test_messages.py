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
    assert one_line(10**5000) == "a value of int"


@pytest.mark.parametrize("escape", [one_line, markdown_text])
def test_nothing_reaches_the_terminal_but_characters_that_can_be_printed(escape):
    assert escape("".join(map(chr, range(256)))).isprintable()
    text = escape("\x1b[31mred\x1b[0m \x07bell\x9b2J \u202eback \udcff é 日本 \U0001f457")
    assert text.isprintable() and text.encode("utf-8") and "é 日本 \U0001f457" in text
    assert "red" in text and "x1b" in text and "u202e" in text
    assert one_line(one_line(text)) == one_line(text)


def test_markdown_is_escaped():
    assert markdown_text("a|b\n<c> `d` [e](f) *g* \\ & h_i") == (r"a\|b &lt;c&gt; \`d\` \[e\](f) \*g\* \\ &amp; h_i")
    assert markdown_text("_x_ __y__ ~~z~~ _.png (_v") == r"\_x\_ \_\_y\_\_ \~\~z\~\~ \_.png (\_v"
    assert markdown_text("before_after.png evaluation_2_é") == "before_after.png evaluation_2_é", "no markup"


def test_arguments_are_named_as_they_are_typed():
    with pytest.raises(ValueError, match="^`input` must be a path like `fps`, got 'poses'$"):
        with naming_arguments(poses="input"):
            raise ValueError("`poses` must be a path like `fps`, got 'poses'")
