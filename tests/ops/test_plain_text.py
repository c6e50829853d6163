"""Names from outside, as they are shown."""

from __future__ import annotations

import pytest

from ops.plain_text import in_markdown, printable, spreadsheet_cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b ä 螺母 #'\"", "a b ä 螺母 #'\""),
        ("", ""),
        ("\x1b[2Ja", "\\x1b[2Ja"),
        ("\x9b2J\x85\x90", "\\x9b2J\\x85\\x90"),
        ("gnp.\u202egpj", "gnp.\\u202egpj"),
        ("\u2066a\u2069\u200e\u200f\u061c", "\\u2066a\\u2069\\u200e\\u200f\\u061c"),
        ("a\nb\rc\td\x0b\x0c\u2028\u2029", "a\\nb\\rc\\td\\x0b\\x0c\\u2028\\u2029"),
        ("\udcff\x00\x7f\ufeff\u200b\xad", "\\udcff\\x00\\x7f\\ufeff\\u200b\\xad"),
        ("1\u202f000\xa0", "1\\u202f000\\xa0"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_invisible_characters_are_escaped(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\uff1d1", "'\uff1d1"),
        ("\t=1", "\\t=1"),
        ("\r=1", "\\r=1"),
        ("\n=1", "\\n=1"),
        ("a=1", "a=1"),
        ("s3://b/-a.png", "s3://b/-a.png"),
        ("", ""),
    ],
)
def test_no_cell_is_a_formula(text, cell):
    assert spreadsheet_cell(text) == cell


def test_markdown_gets_no_links_pictures_columns_or_tags():
    assert in_markdown("![x](http://h/a.png)|`b`<i>\n") == (
        "!&#91;x&#93;(http://h/a.png)&#124;&#96;b&#96;&lt;i&gt;&#92;n"
    )
