"""A registered model through MLflow's own loader: the same scores, and nothing unpickled."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from PIL import Image

from jobs.tracking import pyfunc
from jobs.tracking.record import Record
from jobs.tracking.tracker import Tracker
from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA
from ops.detectors.score_images import ScoreImages
from ops.images import synthetic_parts
from ops.images.read_images import Read
from ops.storage import uris
from tests.conftest import tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A model, the tracker it is registered at, and its version there."""
    place = tmp_path_factory.mktemp("tracker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
        model, tracker = tiny_model("bolt"), Tracker(str(place))
        assert tracker.register(model, "bolts", "champion", Record("fit")) == (
            "models:/bolts@champion"
        )
        from mlflow import MlflowClient  # takes seconds, so not where these tests are deselected

        client = MlflowClient(tracker.uri, tracker.uri)
        yield model, tracker, client.get_model_version_by_alias("bolts", "champion")


@pytest.fixture(scope="module")
def loaded(registered):
    _, tracker, version = registered
    import mlflow

    mlflow.set_tracking_uri(tracker.uri)
    yield mlflow.pyfunc.load_model(version.source)
    mlflow.set_tracking_uri(None)


def test_what_is_registered_holds_no_pickle_and_no_code(registered):
    _, tracker, version = registered
    from mlflow import MlflowClient

    kept = MlflowClient(tracker.uri).list_artifacts(version.run_id, "model")
    names = sorted(file.path.removeprefix("model/") for file in kept if not file.is_dir)
    assert {"MLmodel", "model.json"} <= set(names)
    assert {name.rsplit(".", 1)[-1] for name in names} == {"MLmodel", "json", "safetensors"}


def test_it_scores_as_a_night_does_and_failures_are_rows(registered, loaded, tmp_path):
    import pandas as pd

    model, _, _ = registered
    good, bad = tmp_path / "a #1.png", tmp_path / "b.png"
    Image.fromarray(synthetic_parts.draw("washer", 1, 64).picture).save(good)
    bad.write_bytes(b"no picture")
    places = [str(good), str(bad), str(good)]
    asked = pd.DataFrame({"location": places, "product": ["bolt", "bolt", "nut"]})
    found = loaded.predict(asked)
    assert list(found.columns) == list(pyfunc.ANSWER)
    assert list(found["status"]) == ["ok", "unreadable", "unknown_product"]
    assert list(found["uri"]) == [uris.make(place) for place in places]
    rows = pa.Table.from_pylist([{"uri": uris.make(places[0]), "product": "bolt"}], SCHEMA)
    read = Read(model.card.input, model.card.decode, FetchSettings())
    scored = ScoreImages(pyfunc._Held(model))(read(rows))
    assert found["score"][0] == scored["score"][0].as_py()
    assert found["p_value"][0] == scored["p_value"][0].as_py()
    assert pd.isna(found["score"][1])


def test_rows_that_lack_a_column_are_refused(loaded):
    import mlflow
    import pandas as pd

    with pytest.raises(mlflow.exceptions.MlflowException, match="product"):
        loaded.predict(pd.DataFrame({"location": ["a.png"]}))


def test_its_page_names_its_pictures_and_what_they_show():
    pictures = {"a%2Fb.held-out.png": b"", "c.held-out.png": b"", "_joint.synthetic.png": b""}
    told = pyfunc.page(replace(tiny_model("a/b"), pictures=pictures)).splitlines()
    shown = [line.split(",")[0].split(";")[0] for line in told if line.startswith("* ")]
    assert shown == [
        "* `*.held-out.png`: the good images held out of the fit that score highest",
        "* `*.synthetic.png`: good images",
    ]
    assert "Pictures" not in pyfunc.page(tiny_model("a/b"))


def test_its_page_escapes_names_and_is_no_longer_than_a_database_takes():
    model = tiny_model("bolt")
    (card,) = model.card.products.values()
    names = ["<b>|\nrow", *(f"product-{number:03d}" for number in range(500))]
    many = replace(model, card=replace(model.card, products=dict.fromkeys(names, card)))
    told = pyfunc.page(many)
    assert 4700 < len(told) <= 4900
    rows = [line for line in told.splitlines() if line.startswith("| ")][1:]
    assert rows[0].startswith("| &lt;b&gt;&#124;&#92;nrow | 2 | ")
    assert told.endswith(f"... and {501 - len(rows)} more products, whose cards are in model.json")


def test_its_page_tells_products_counts_and_thresholds(registered):
    model, _, version = registered
    card = model.card
    calibration = card.products["bolt"].calibration
    held_out, threshold = len(calibration.scores), calibration.threshold(card.false_alarm_rate)
    row = f"| bolt | {held_out} | {threshold:.4g} | "
    assert row in version.description
    assert card.model_id in version.description
