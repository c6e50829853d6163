import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ops.results import plots
from ops.results.metrics import PixelHistogram, roc
from ops.results.plots import Separation, Shift


def separation(product: str = "bolt", threshold: float | None = 0.5) -> Separation:
    rng = np.random.default_rng(0)
    good, bad = rng.normal(size=50), rng.normal(size=30) + 1
    mask = np.zeros((40, 40), bool)
    mask[5:15, 5:25] = True
    pixels = PixelHistogram()
    levels = 20_000 * (rng.normal(size=mask.shape) + mask + 4) / 4
    pixels.add(levels.clip(0, 65535).astype(np.uint16), mask)
    scores, labels = np.concatenate([good, bad]), np.repeat([False, True], [50, 30])
    curves = (roc(scores, labels), pixels.roc(), pixels.pro_curve())
    return Separation(product, good, bad, threshold, *curves)


@pytest.fixture
def panels(monkeypatch):
    """Draws, and returns the picture's panels."""
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )

    def draw(found: Separation):
        plots.draw(found)
        return drawn[-1].axes

    return draw


def words(panel) -> list[str]:
    legend = panel.get_legend()
    return [text.get_text() for text in (legend.get_texts() if legend else panel.texts)]


def test_a_picture_shows_the_curves_and_names_their_areas(panels):
    found = separation()
    first, second, _ = panels(found)
    for line, curve in zip(first.lines, (found.image_roc, found.pixel_roc), strict=False):
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(
            curve.area(), abs=0.002
        )
    assert words(first) == [
        f"images: AUROC {found.image_roc.area():.4f}",
        f"pixels: AUROC {found.pixel_roc.area():.4f}",
    ]
    assert words(second) == [f"AUPRO up to 0.3: {found.pro.area(0.3):.4f}"]
    assert second.get_xlim() == (0, 0.3)


def test_a_picture_counts_the_images_of_both_kinds_beside_the_models_threshold(panels):
    found = separation()
    scores = panels(found)[2]
    heights = [sum(bar.get_height() for bar in bars) for bars in scores.containers]
    assert heights == [50, 30]
    assert words(scores) == ["50 good", "30 defective", "the model's threshold 0.5"]
    assert list(scores.lines[0].get_xdata()) == [0.5, 0.5]
    assert not panels(separation(threshold=None))[2].lines


def test_what_is_not_known_is_said(panels):
    one_kind = Separation("bolt", np.ones(3), np.zeros(0), None, None)
    first, second, scores = panels(one_kind)
    assert words(first) == words(second) == ["not known"]
    assert words(scores) == ["3 good", "0 defective"]
    assert panels(Separation("bolt", np.zeros(0), np.zeros(0), None, None))


@pytest.mark.filterwarnings("error")
def test_any_name_can_stand_above_a_picture_and_equal_figures_give_equal_bytes():
    name = "$x_{1 größe <1>\n日本"
    png = plots.draw(separation(name))
    assert png == plots.draw(separation(name))
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"


def shift(product: str = "bolt", count: int = 50, threshold: float | None = 0.5) -> Shift:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=count), rng.normal(size=count + 10)
    pairs = (before, before + 0.1)
    return Shift(
        product, "score", before, after, "score", pairs, threshold, ("one", "two"), "KS 0.1"
    )


@pytest.fixture
def shift_panels(panels, monkeypatch):
    monkeypatch.setattr(plots, "draw", plots.draw_shift)
    return panels


def test_a_shift_shows_shares_of_both_runs_and_image_against_image(shift_panels):
    values, images = shift_panels(shift())
    heights = [sum(bar.get_height() for bar in bars) for bars in values.containers]
    assert heights == pytest.approx([1, 1])
    assert words(values) == ["one: 50 images", "two: 60 images"]
    assert values.get_title() == "KS 0.1"
    dots = images.lines[1]
    assert list(dots.get_ydata() - dots.get_xdata()) == pytest.approx([0.1] * 50)
    assert (images.get_xlabel(), images.get_ylabel()) == ("score, one", "score, two")
    assert len(images.lines) == 4  # the diagonal, dots, and the threshold twice
    assert len(shift_panels(shift(count=plots.POINTS + 9))[1].lines[1].get_xdata()) == 5000


def test_a_shift_of_nothing_is_said(shift_panels):
    none = np.zeros(0)
    empty = Shift("bolt", "score", none, none, "rank", (none, none), None, ("one", "two"))
    assert [words(panel) for panel in shift_panels(empty)] == [["not known"]] * 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$x_{1 größe <1>\n日本", "<b>../x", "\x1b[2J"])
def test_any_name_can_stand_above_a_shift_and_equal_figures_give_equal_bytes(name):
    png = plots.draw_shift(shift(name))
    assert png == plots.draw_shift(shift(name))
    with Image.open(io.BytesIO(png)) as image:
        image.load()
