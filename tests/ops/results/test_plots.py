import io
from dataclasses import replace

import numpy as np
import pytest
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
    """A function that draws a plot and returns its panels."""
    figures = []
    from matplotlib.figure import Figure  # takes a second, also where no plot is tested

    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )

    def draw(data: Separation | Shift):
        plots.draw_separation(data)
        return figures[-1].axes

    return draw


def texts(panel) -> list[str]:
    legend = panel.get_legend()
    return [text.get_text() for text in (legend.get_texts() if legend else panel.texts)]


def test_a_plot_shows_the_curves_and_names_their_areas(panels):
    data = separation()
    first, second, _ = panels(data)
    for line, curve in zip(first.lines, (data.image_roc, data.pixel_roc), strict=False):
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(
            curve.area(), abs=0.002
        )
    assert texts(first) == [
        f"images: AUROC {data.image_roc.area():.4f}",
        f"pixels: AUROC {data.pixel_roc.area():.4f}",
    ]
    assert texts(second) == [f"AUPRO up to 0.3: {data.pro.area(0.3):.4f}"]
    assert second.get_xlim() == (0, 0.3)


def test_a_plot_counts_the_images_of_both_kinds_beside_the_models_threshold(panels):
    data = separation()
    scores = panels(data)[2]
    heights = [sum(bar.get_height() for bar in bars) for bars in scores.containers]
    assert heights == [50, 30]
    assert texts(scores) == ["50 good", "30 defective", "the model's threshold 0.5"]
    assert list(scores.lines[0].get_xdata()) == [0.5, 0.5]
    assert not panels(separation(threshold=None))[2].lines


def test_unknown_data_is_labelled_unknown(panels):
    one_kind = Separation("bolt", np.ones(3), np.zeros(0), None, None)
    first, second, scores = panels(one_kind)
    assert texts(first) == texts(second) == ["unknown"]
    assert texts(scores) == ["3 good", "0 defective"]
    assert panels(Separation("bolt", np.zeros(0), np.zeros(0), None, None))


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_the_title_of_a_separation_and_equal_data_gives_equal_bytes():
    name = "$x_{1 größe <1>\n日本"
    png = plots.draw_separation(separation(name))
    assert png == plots.draw_separation(separation(name))
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
    monkeypatch.setattr(plots, "draw_separation", plots.draw_shift)
    return panels


def test_a_shift_shows_shares_of_both_runs_and_image_against_image(shift_panels):
    values, images = shift_panels(shift())
    heights = [sum(bar.get_height() for bar in bars) for bars in values.containers]
    assert heights == pytest.approx([1, 1])
    assert texts(values) == ["one: 50 images", "two: 60 images"]
    assert values.get_title() == "KS 0.1"
    dots = images.lines[1]
    assert list(dots.get_ydata() - dots.get_xdata()) == pytest.approx([0.1] * 50)
    assert (images.get_xlabel(), images.get_ylabel()) == ("score, one", "score, two")
    assert len(images.lines) == 4  # the diagonal, dots, and the threshold twice
    assert len(shift_panels(shift(count=plots.POINTS + 9))[1].lines[1].get_xdata()) == 5000


def test_a_shift_without_data_is_labelled_unknown(shift_panels):
    none = np.zeros(0)
    empty = Shift("bolt", "score", none, none, "rank", (none, none), None, ("one", "two"))
    assert [texts(panel) for panel in shift_panels(empty)] == [["unknown"]] * 2


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_the_title_of_a_shift_and_equal_data_gives_equal_bytes():
    name = "$x_{1 größe <1>\n日本 <b>../x \x1b[2J"
    png = plots.draw_shift(shift(name))
    assert png == plots.draw_shift(shift(name))
    with Image.open(io.BytesIO(png)) as image:
        image.load()


def test_names_of_sides_are_not_read_as_mathematics(shift_panels):
    values, _ = shift_panels(replace(shift(), sides=("tiles $x_{$", "b\x1b[2J")))
    assert texts(values) == [r"tiles \$x_{\$: 50 images", r"b\x1b[2J: 60 images"]
