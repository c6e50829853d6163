"""The scale of values; the rules for TIFF are tested with its files."""

import numpy as np
import pytest

from ops.errors import SettingError
from ops.images.decode import DecodeSettings
from ops.images.formats.depth import over_black


@pytest.mark.parametrize("text", ["", "1", "0,0", "1,0", "0,nan", "0,inf", "a,b", "0,1,2"])
def test_a_range_must_be_black_and_a_larger_white(text):
    with pytest.raises(SettingError, match="must be two numbers"):
        DecodeSettings(range=text)
    assert DecodeSettings(range="-1, 2.5").limits == (-1.0, 2.5)


def test_a_page_counts_from_one():
    with pytest.raises(SettingError, match="page 0 must be at least 1"):
        DecodeSettings(page=0)


def test_blending_rounds_and_neither_overflows():
    values = np.array([[0, 1, 65535]], np.uint16)
    for alpha, expected in ((65535, [0, 1, 65535]), (0, [0, 0, 0]), (32768, [0, 1, 32768])):
        blended = over_black(values, np.full((1, 3), alpha, np.uint16), 65535)
        assert blended.tolist() == [expected]


def test_a_range_must_be_a_finite_number_wide():
    for text in ("-1.7e308,1.7e308", "0,inf", "nan,1", "1,1"):
        with pytest.raises(SettingError, match="range"):
            DecodeSettings(range=text)
