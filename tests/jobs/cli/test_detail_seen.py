"""How much of a picture is seen, in words."""

from jobs.cli.detail_seen import detail_seen
from pipelines.fitting.picture_sizes import Detail


def test_little_detail_is_warned_of():
    assert list(detail_seen(Detail((600, 448), 600 / 224, 600 / 28))) == [
        "a pixel that the network sees is 2.68 pixels of a picture of 600 x 448, and a patch 21.4; "
        "smaller defects are easily missed"
    ]
    said, warning = detail_seen(Detail((672, 448), 3.0, 24.0))
    assert said.startswith("a pixel that the network sees is 3 pixels of a picture of 672 x 448")
    assert warning.startswith("warning: most of the picture's detail is not seen; for small defect")


def test_one_pixel_is_no_plural():
    (said,) = detail_seen(Detail((224, 224), 1.0, 8.0))
    assert said.startswith("a pixel that the network sees is 1 pixel of a picture of 224 x 224, ")


def test_nothing_is_said_of_pictures_that_were_not_read():
    assert list(detail_seen(None)) == []
