"""Which images a fit rests on, and which it holds out."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest

from ops.archives.inventory import SCHEMA, Inventory, image_id
from ops.detectors.patchcore import PatchCoreSettings
from ops.detectors.registry import DETECTORS, detector_class
from ops.errors import SettingError, UserError
from ops.features.backbone import BackboneSettings
from ops.images.resize import InputSettings
from ops.storage import parquet
from pipelines.fitting.request import ROW, FitRequest, Select, split
from tests.runs import Part, list_parts


def chosen(tmp_path, count, holdout):
    parts = [Part(f"{n}.png", "bolt", 1.0, label=0) for n in range(count)]
    listed = list_parts(str(tmp_path / "parts.parquet"), parts)
    request = FitRequest("patchcore", PatchCoreSettings(), BackboneSettings(), holdout=holdout)
    return split(listed, request)


@pytest.mark.parametrize(
    ("count", "holdout", "held_out"),
    [
        (1, 0.9, 0),
        (2, 0.9, 1),
        (2, 0.1, 1),
        (4, 0.99, 3),
        (20, 0.1, 2),
        (20, 0.0, 0),
        (20, 0.97, 19),
    ],
)
def test_of_each_product_one_image_at_least_is_fitted_on(tmp_path, count, holdout, held_out):
    result = chosen(tmp_path, count, holdout)
    assert (len(result.fit), len(result.held_out)) == (count - held_out, held_out)
    ids = result.fit["image_id"].to_pylist() + result.held_out["image_id"].to_pylist()
    assert len(set(ids)) == count


def members_of(tmp_path, name, found):
    """An inventory of (product, uri, member)."""
    rows = [
        {"image_id": image_id(uri, str(member)), "uri": uri, "version": str(member)}
        | {"product": product, "member": member}
        for product, uri, member in found
    ]
    location = str(tmp_path / f"{name}.parquet")
    parquet.write(location, SCHEMA, [pa.Table.from_pylist(rows, SCHEMA)])
    return Inventory(location)


def numbered(listed, **more):
    request = FitRequest("patchcore", PatchCoreSettings(), BackboneSettings(), **more)
    result = split(listed, request)
    return [
        dict(zip(rows.schema.names, values, strict=True))
        for rows in (result.fit, result.held_out)
        for values in zip(*(column.to_pylist() for column in rows.columns), strict=True)
    ], result


TWO = [
    (product, f"file:///a/t.parquet#{row}/x", row)
    for row in range(24)
    for product in [("bolt", "nut")[row % 2]]
]
PLAIN = [("bolt", "file:///a/s.png", None), ("nut", "file:///a/u.png", None)]


def test_members_are_read_in_the_order_of_their_container(tmp_path):
    _, result = numbered(members_of(tmp_path, "two", TWO + PLAIN), holdout=0.3)
    for rows in (result.fit, result.held_out):
        of_product = {"bolt": [], "nut": []}
        for product, member in zip(
            *(rows[n].to_pylist() for n in ("product", "member")), strict=True
        ):
            if member is not None:
                of_product[product].append(member)
        assert all(members == sorted(members) for members in of_product.values())
        products = rows["product"].to_pylist()
        assert products == sorted(products)


def test_a_joint_fit_reads_a_container_of_several_products_once(tmp_path):
    _, result = numbered(members_of(tmp_path, "two", TWO), joint=True, holdout=0.3)
    assert result.fit["member"].to_pylist() == sorted(result.fit["member"].to_pylist())
    assert set(result.fit["product"].to_pylist()) == {"bolt", "nut"}
    assert result.products == ["bolt", "nut"]


@pytest.mark.parametrize("joint", [False, True])
def test_numbers_and_held_out_images_follow_from_addresses_alone(tmp_path, joint):
    listed = members_of(tmp_path, "listed", TWO + PLAIN)
    rows, result = numbered(listed, joint=joint)
    by_address = sorted(rows[: len(result.fit)], key=lambda row: (row["product"], row["uri"]))
    assert [row[ROW] for row in by_address] == list(range(len(result.fit)))
    shuffled, _ = numbered(members_of(tmp_path, "shuffled", (TWO + PLAIN)[::-1]), joint=joint)
    assert shuffled == rows


def test_files_of_their_own_are_read_by_product_and_address(tmp_path):
    found = [(f"p{n % 3}", f"file:///a/{n}.png", None) for n in range(12)]
    for joint in (False, True):
        _, result = numbered(members_of(tmp_path, "files", found), joint=joint)
        assert result.fit[ROW].to_pylist() == list(range(len(result.fit)))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("chosen_form", ["NFC", "NFD"])
def test_a_product_is_chosen_whatever_form_its_name_has(tmp_path, form, chosen_form):
    product = unicodedata.normalize(form, "T\u00fcr")
    found = [(product, f"file:///a/{n}.png", None) for n in range(3)] + PLAIN
    select = Select([unicodedata.normalize(chosen_form, "T\u00fcr")])
    _, result = numbered(members_of(tmp_path, "forms", found), select=select)
    assert result.products == ["T\u00fcr"]
    assert len(result.fit) + len(result.held_out) == 3


@pytest.mark.parametrize("method", ["padim", "cflow"])
def test_detectors_that_know_positions_refuse_tiles(method):
    settings = detector_class(method).Settings()
    with pytest.raises(SettingError) as error:
        FitRequest(method, settings, BackboneSettings(), input=InputSettings(fit="tile"))
    words = str(error.value)
    assert words.startswith(f"input.fit tile cannot be combined with method {method}: {method} ")
    assert words.endswith("; choose another method, such as patchcore, or input.fit squash")
    FitRequest(method, settings, BackboneSettings())


@pytest.mark.parametrize("method", sorted(set(DETECTORS) - {"padim", "cflow"}))
def test_all_other_detectors_take_tiles(method):
    settings = detector_class(method).Settings()
    assert FitRequest(
        method, settings, BackboneSettings(), input=InputSettings(fit="tile")
    ).input.tiled


def seen(tmp_path, parts=10, views=("side", "top")):
    """An inventory of parts of two views."""
    rows = [
        {"image_id": image_id(uri, "1"), "uri": uri, "version": "1"}
        | {"product": "bolt", "part": f"{part}", "view": view}
        for part in range(parts)
        for view in views
        for uri in [f"file:///a/{part}/{view}.png"]
    ]
    location = str(tmp_path / "seen.parquet")
    parquet.write(location, SCHEMA, [pa.Table.from_pylist(rows, SCHEMA)])
    return Inventory(location)


def test_separate_views_have_detectors_of_their_own_and_hold_out_the_same_parts(tmp_path):
    listed = seen(tmp_path)
    rows, result = numbered(listed, holdout=0.3, views="separate")
    assert result.detectors == result.products == ["bolt/side", "bolt/top"]
    assert [row[ROW] for row in rows[: len(result.fit)]] == list(range(14))
    assert set(result.held_out["product"].to_pylist()) == {"bolt"}
    held_out = result.held_out["part"].to_pylist()
    assert sorted(held_out) == sorted([*set(held_out)] * 2)
    assert len(held_out) == 6
    _, pooled = numbered(listed, holdout=0.3)
    assert pooled.held_out.equals(result.held_out)
    assert pooled.detectors == ["bolt"]


def test_images_of_no_part_are_held_out_from_each_view(tmp_path):
    places = [f"file:///a/{view}{n}.png" for view in ("side", "top") for n in range(10)]
    rows = [
        {"image_id": image_id(uri, "1"), "uri": uri, "version": "1"}
        | {"product": "bolt", "view": uri.rpartition("/")[2].partition(".")[0].rstrip("0123456789")}
        for uri in places
    ]
    location = str(tmp_path / "views.parquet")
    parquet.write(location, SCHEMA, [pa.Table.from_pylist(rows, SCHEMA)])
    _, result = numbered(Inventory(location), holdout=0.2, views="separate")
    views = result.held_out["view"].to_pylist()
    assert len(views) == 4
    assert {view: views.count(view) for view in views} == dict.fromkeys(set(views), 2)


def test_separate_views_exclude_a_joint_detector_and_names_with_slashes(tmp_path):
    with pytest.raises(SettingError, match="choose one of them"):
        FitRequest(
            "patchcore", PatchCoreSettings(), BackboneSettings(), joint=True, views="separate"
        )
    with pytest.raises(SettingError, match="must be pooled or separate"):
        FitRequest("patchcore", PatchCoreSettings(), BackboneSettings(), views="both")
    with pytest.raises(UserError, match="'a/b' holds a slash"):
        numbered(seen(tmp_path, views=("a/b",)), views="separate")
