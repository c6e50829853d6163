"""The public data sets, each as a small drawn tree: exactly which rows an inventory has."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import sources
from jobs.cli.console import Progress
from ops.archives.fetch import fetch
from ops.archives.layouts import LAYOUTS
from ops.errors import UserError
from ops.images.decode import decode
from ops.images.resize import InputSettings, resize_mask
from tests.conftest import ROOT

#: What lies in a tree -> its rows: path, product, split, label, defect, mask.
TREES: dict[str, tuple[list[str], list[tuple]]] = {
    "mvtec": (
        [
            "bottle/ground_truth/broken/000_mask.png",
            "bottle/test/broken/000.png",
            "bottle/test/good/000.png",
            "bottle/train/good/000.png",
            "bottle/license.txt",
        ],
        [
            ("bottle/test/broken/000.png", "bottle", "test", 1, "broken",
             "bottle/ground_truth/broken/000_mask.png"),
            ("bottle/test/good/000.png", "bottle", "test", 0, "good", None),
            ("bottle/train/good/000.png", "bottle", "train", 0, "good", None),
        ],
    ),
    "btad": (
        [
            "01/ground_truth/ko/0000.png",
            "01/test/ko/0000.bmp",
            "01/test/ok/0021.bmp",
            "01/train/ok/0000.bmp",
            "03/ground_truth/ko/0001.bmp",
            "03/ground_truth/ok/0400.bmp",
            "03/test/ko/0001.bmp",
            "03/test/ok/0400.bmp",
        ],
        [
            ("01/test/ko/0000.bmp", "01", "test", 1, "ko", "01/ground_truth/ko/0000.png"),
            ("01/test/ok/0021.bmp", "01", "test", 0, "ok", None),
            ("01/train/ok/0000.bmp", "01", "train", 0, "ok", None),
            ("03/test/ko/0001.bmp", "03", "test", 1, "ko", "03/ground_truth/ko/0001.bmp"),
            ("03/test/ok/0400.bmp", "03", "test", 0, "ok", None),
        ],
    ),
    "dagm": (
        [
            "Class1/Test/0001.PNG",
            "Class1/Test/0002.PNG",
            "Class1/Test/Label/0002_label.PNG",
            "Class1/Test/Label/Labels.txt",
            "Class1/Train/0001.PNG",
            "Class1/Train/0002.PNG",
            "Class1/Train/Label/0001_label.PNG",
            "Class10/Test/0002.PNG",
        ],
        [
            ("Class1/Test/0001.PNG", "Class1", "test", 0, None, None),
            ("Class1/Test/0002.PNG", "Class1", "test", 1, None, "Class1/Test/Label/0002_label.PNG"),
            # Defective, so it is not fitted on; of split train, so it is not evaluated either.
            ("Class1/Train/0001.PNG", "Class1", "train", 1, None,
             "Class1/Train/Label/0001_label.PNG"),
            ("Class1/Train/0002.PNG", "Class1", "train", 0, None, None),
            ("Class10/Test/0002.PNG", "Class10", "test", 0, None, None),
        ],
    ),
    "mstc": (
        [
            *(f"testing/frames/01_0014/{n:03d}.jpg" for n in range(12)),
            "testing/frames/12_0142/000.jpg",
            "testing/masks/01_0014/005.png",
            "testing/masks/01_0014/006.png",
            "training/frames/01_001/0004.jpg",
            "training/frames/01_001/0005.jpg",
            "training/videos/01_001.avi",
            "testing/test_frame_mask/01_0014.npy",
        ],
        [
            ("testing/frames/01_0014/000.jpg", "01", "test", 0, None, None),
            ("testing/frames/01_0014/005.jpg", "01", "test", 1, None,
             "testing/masks/01_0014/005.png"),
            ("testing/frames/01_0014/010.jpg", "01", "test", 0, None, None),
            ("training/frames/01_001/0005.jpg", "01", "train", 0, None, None),
            ("testing/frames/12_0142/000.jpg", "12", "test", 0, None, None),
        ],
    ),
    "visa": (
        [
            "candle/ground_truth/bad/000.png",
            "candle/test/bad/000.JPG",
            "candle/test/good/0000.JPG",
            "candle/train/good/0836.JPG",
        ],
        [
            ("candle/test/bad/000.JPG", "candle", "test", 1, "bad",
             "candle/ground_truth/bad/000.png"),
            ("candle/test/good/0000.JPG", "candle", "test", 0, "good", None),
            ("candle/train/good/0836.JPG", "candle", "train", 0, "good", None),
        ],
    ),
    "visa-raw": (
        [
            "candle/Data/Images/Anomaly/000.JPG",
            "candle/Data/Images/Normal/0000.JPG",
            "candle/Data/Images/Normal/0836.JPG",
            "candle/Data/Masks/Anomaly/000.png",
            "candle/image_anno.csv",
            "fryum/Data/Images/Normal/0836.JPG",
            "split_csv/1cls.csv",
        ],
        [
            ("candle/Data/Images/Anomaly/000.JPG", "candle", "test", 1, "Anomaly",
             "candle/Data/Masks/Anomaly/000.png"),
            ("candle/Data/Images/Normal/0000.JPG", "candle", "test", 0, "Normal", None),
            ("candle/Data/Images/Normal/0836.JPG", "candle", "train", 0, "Normal", None),
            # Products share names: the list means paths.
            ("fryum/Data/Images/Normal/0836.JPG", "fryum", "test", 0, "Normal", None),
        ],
    ),
    "mvtec-ad-2": (
        [
            "can/test_private/000.png",
            "can/test_private_mixed/000_mixed.png",
            "can/test_public/bad/000_regular.png",
            "can/test_public/good/001_overexposed.png",
            "can/test_public/ground_truth/bad/000_regular_mask.png",
            "can/train/good/000_regular.png",
            "can/validation/good/000_regular.png",
            "license.txt",
        ],
        [
            ("can/test_private/000.png", "can", "test_private", None, None, None),
            ("can/test_private_mixed/000_mixed.png", "can", "test_private_mixed", None, None, None),
            ("can/test_public/bad/000_regular.png", "can", "test_public", 1, "bad",
             "can/test_public/ground_truth/bad/000_regular_mask.png"),
            ("can/test_public/good/001_overexposed.png", "can", "test_public", 0, "good", None),
            ("can/train/good/000_regular.png", "can", "train", 0, "good", None),
            ("can/validation/good/000_regular.png", "can", "validation", 0, "good", None),
        ],
    ),
    "real-iad": (
        [
            "realiad_256/usb/NG/BX/S0001/usb_0001_NG_BX_C1_20230101000000.jpg",
            "realiad_256/usb/NG/BX/S0001/usb_0001_NG_BX_C1_20230101000000.png",
            "realiad_256/usb/NG/BX/S0001/usb_0001_NG_BX_C2_20230101000000.jpg",
            "realiad_256/usb/OK/S0001/usb_0001_OK_C1_20230101000000.jpg",
            "realiad_256/usb/OK/S0001/usb_0001_OK_C2_20230101000000.jpg",
            "realiad_256/usb/OK/S0002/usb_0002_OK_C1_20230101000000.jpg",
            "realiad_256/usb/OK/S0003/usb_0003_OK_C1_20230101000000.jpg",
            "realiad_jsons/realiad_jsons/usb.json",
            "realiad_jsons/realiad_jsons_sv/usb.json",
        ],
        [
            ("realiad_256/usb/NG/BX/S0001/usb_0001_NG_BX_C1_20230101000000.jpg", "usb", "test", 1,
             "BX", "realiad_256/usb/NG/BX/S0001/usb_0001_NG_BX_C1_20230101000000.png"),
            # The defect is not to be seen from here.
            ("realiad_256/usb/NG/BX/S0001/usb_0001_NG_BX_C2_20230101000000.jpg", "usb", "test", 0,
             "BX", None),
            ("realiad_256/usb/OK/S0001/usb_0001_OK_C1_20230101000000.jpg", "usb", "train", 0, None,
             None),
            ("realiad_256/usb/OK/S0001/usb_0001_OK_C2_20230101000000.jpg", "usb", "train", 0, None,
             None),
            ("realiad_256/usb/OK/S0002/usb_0002_OK_C1_20230101000000.jpg", "usb", "test", 0, None,
             None),
        ],
    ),
}  # fmt: skip
VISA_SPLIT = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0836.JPG,
candle,test,normal,candle/Data/Images/Normal/0000.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
"""


def _real_iad(codes: dict[str, list[str]]) -> str:
    """A list of Real-IAD: of each split the names of its images, as `0001_OK_C1`."""

    def entry(name: str) -> dict:
        number, *code, _ = name.split("_")
        folder = "/".join([*code, f"S{number}"])
        path = f"{folder}/usb_{name}_20230101000000.jpg"
        return {"category": "usb", "anomaly_class": code[-1], "image_path": path, "mask_path": None}

    lists = {split: [entry(name) for name in names] for split, names in codes.items()}
    return json.dumps({"meta": {"normal_class": "OK", "prefix": "./data"}, **lists})


#: The lists of splits that lie in a data set.
LISTS = {
    "split_csv/1cls.csv": VISA_SPLIT,
    "realiad_jsons/realiad_jsons/usb.json": _real_iad(
        {
            "train": ["0001_OK_C1", "0001_OK_C2"],
            "test": ["0002_OK_C1", "0001_NG_BX_C1", "0001_NG_BX_C2"],
        }
    ),
    "realiad_jsons/realiad_jsons_sv/usb.json": _real_iad(
        {"train": ["0001_OK_C1"], "test": ["0002_OK_C1", "0001_NG_BX_C1"]}
    ),
}


def draw(folder: Path, names: list[str]) -> Path:
    """Small images under these names; a mask has a square of four pixels."""
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 4:6] = 255
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".bmp": "BMP", ".jpg": "JPEG", ".png": "PNG"}.get(path.suffix.lower())
        is_mask = any(word in name for word in ("ground_truth", "Label", "masks", "Masks"))
        is_mask |= "/NG/" in name and path.suffix == ".png"
        if kind:
            pixels = mask if is_mask else np.full((8, 8), 90, np.uint8)
            Image.fromarray(pixels).save(path, kind)
        else:
            path.write_text(LISTS.get(name, "other"))
    return folder


def rows_of(archive: Path, layout: str, out: Path, **more: str) -> list[dict]:
    with Progress() as progress:
        sources.take(sources.Listing(str(archive), layout, **more), str(out), progress)
    return pq.read_table(out).to_pylist()


def short(row: dict, archive: Path) -> tuple:
    def below(uri: str | None) -> str | None:
        return uri and uri.split(f"{archive}")[1].lstrip("/#.")

    named = (row["product"], row["split"], row["label"], row["defect"])
    return below(row["uri"]), *named, below(row["mask_uri"])


@pytest.mark.parametrize("layout", TREES)
def test_a_data_set_is_listed_as_it_is_meant(layout, tmp_path):
    names, expected = TREES[layout]
    archive = draw(tmp_path / layout, names)
    rows = rows_of(archive, layout, tmp_path / "i.parquet")
    assert [short(row, archive) for row in rows] == expected
    for row in rows:
        if row["mask_uri"]:
            mask = decode(fetch(row["mask_uri"], None, None)).pixels
            found = resize_mask(mask, InputSettings(8))
            assert found[2:4, 4:6].all()
            assert found.sum() == 4


def pack(archive: Path, kind: str) -> Path:
    """A tar or zip of a folder, beside it."""
    packed = archive.parent / f"a.{kind}"
    if kind == "tar":
        with tarfile.open(packed, "w") as tar:
            tar.add(archive, ".")
    else:
        with zipfile.ZipFile(packed, "w") as zipped:
            for path in sorted(archive.rglob("*")):
                zipped.write(path, path.relative_to(archive))
    return packed


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("layout", TREES)
def test_a_packed_data_set_is_listed_alike(layout, kind, tmp_path):
    names, expected = TREES[layout]
    archive = draw(tmp_path / layout, names)
    lists = next((str(archive / name) for name in LAYOUTS[layout].lists), "")
    rows = rows_of(pack(archive, kind), layout, tmp_path / "i.parquet", train_names=lists)
    found = [short(row, tmp_path / f"a.{kind}") for row in rows]
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("layout", ["visa-raw", "real-iad"])
def test_a_packed_data_set_needs_its_list_beside_it(layout, tmp_path):
    packed = pack(draw(tmp_path / layout, TREES[layout][0]), "tar")
    with pytest.raises(UserError, match=r"which .*a\.tar does not hold; name it: --train-names"):
        rows_of(packed, layout, tmp_path / "i.parquet")


def test_parts_and_views_of_real_iad_are_those_of_its_authors(tmp_path):
    rows = rows_of(draw(tmp_path / "a", TREES["real-iad"][0]), "real-iad", tmp_path / "i.parquet")
    # S0001 is a good part and a defective one.
    assert [(row["part"], row["view"]) for row in rows] == [
        ("usb_0001_NG_BX", "C1"),
        ("usb_0001_NG_BX", "C2"),
        ("usb_0001_OK", "C1"),
        ("usb_0001_OK", "C2"),
        ("usb_0002_OK", "C1"),
    ]


def test_images_that_lists_of_splits_do_not_name_are_left_out_and_counted(tmp_path, capsys):
    archive = draw(tmp_path / "a", TREES["real-iad"][0])
    single = archive / "realiad_jsons" / "realiad_jsons_sv"
    for given in (single, single / "usb.json"):
        rows = rows_of(archive, "real-iad", tmp_path / "i.parquet", train_names=str(given))
        assert [(row["part"], row["view"], row["split"]) for row in rows] == [
            ("usb_0001_NG_BX", "C1", "test"),
            ("usb_0001_OK", "C1", "train"),
            ("usb_0002_OK", "C1", "test"),
        ]
        assert (
            "left out: 3 images that the lists of the splits do not name" in capsys.readouterr().out
        )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"train": []}', "it lacks lists train and test of image_path"),
        ('{"train": [{}], "test": []}', "it lacks lists train and test of image_path"),
        ('{"train": ', "is no list of names"),
        ("\udcff", "is no list of names"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(content, words, tmp_path):
    archive = draw(tmp_path / "a", TREES["real-iad"][0])
    (tmp_path / "list.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=words):
        rows_of(
            archive, "real-iad", tmp_path / "i.parquet", train_names=str(tmp_path / "list.json")
        )
    with pytest.raises(UserError, match=r"is a folder without a \.json file"):
        rows_of(archive, "real-iad", tmp_path / "i.parquet", train_names=str(archive))


def test_the_published_archive_of_visa_needs_its_list(tmp_path):
    names = [name for name in TREES["visa-raw"][0] if not name.endswith("1cls.csv")]
    archive = draw(tmp_path / "VisA", names)
    with pytest.raises(UserError, match=r"splits by split_csv/1cls\.csv.* --train-names FILE"):
        rows_of(archive, "visa-raw", tmp_path / "i.parquet")
    (tmp_path / "list.csv").write_text(VISA_SPLIT)
    rows = rows_of(
        archive, "visa-raw", tmp_path / "i.parquet", train_names=str(tmp_path / "list.csv")
    )
    assert [short(row, archive) for row in rows] == TREES["visa-raw"][1]


@pytest.mark.parametrize("layout", ["dagm", "mstc"])
def test_where_masks_make_labels_nothing_is_known_without_any(layout, tmp_path, capsys):
    names = [name for name in TREES[layout][0] if "Label/" not in name and "masks/" not in name]
    rows = rows_of(draw(tmp_path / "a", names), layout, tmp_path / "i.parquet")
    assert rows
    assert {row["label"] for row in rows} == {None}
    assert "there are no masks" in capsys.readouterr().out


def test_frames_between_those_that_count_are_said_to_be_left_out(tmp_path, capsys):
    names, _ = TREES["mstc"]
    rows_of(draw(tmp_path / "a", names), "mstc", tmp_path / "i.parquet")
    assert "10 frames between those that the layout lists" in capsys.readouterr().out


def test_damage_of_an_archive_is_no_good_image(tmp_path):
    archive = draw(tmp_path / "a", TREES["dagm"][0])
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as packed:
        packed.add(archive, ".")
    (archive / "Class9" / "Test").mkdir(parents=True)
    (archive / "Class9" / "Test" / "more.tar").write_bytes(whole.getvalue()[:2000])
    rows = rows_of(archive, "dagm", tmp_path / "i.parquet")
    (damaged,) = [row for row in rows if row["problem"]]
    assert damaged["label"] is None


def test_every_layout_is_documented():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"`--layout {name}`" in text for name in LAYOUTS)
