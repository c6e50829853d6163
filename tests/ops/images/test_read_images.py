"""How many pixels the threads of one reader decode at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from ops.archives.fetch import FetchSettings
from ops.images import read_images
from ops.images.decode import DecodeSettings
from ops.images.read_images import PixelBudget, Read
from ops.images.resize import InputSettings
from ops.storage import uris
from tests import pictures


def test_images_share_the_budget_and_one_larger_than_it_is_decoded_alone():
    budget, lock, held, seen = PixelBudget(100), threading.Lock(), [], []

    def take(pixels):
        with budget.reserved(pixels):
            with lock:
                held.append(pixels)
                seen.append(list(held))
            threading.Event().wait(0.002)
            with lock:
                held.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [30, 40, 500, 20, 100, 60, 30, 30, 101, 10] * 4))
    assert len(seen) == 40
    assert all(sum(now) <= 100 or len(now) == 1 for now in seen)
    assert any(len(now) > 1 for now in seen)


def test_reserved_pixels_are_released_after_every_outcome(tmp_path, monkeypatch):
    budget = PixelBudget(64 * 64)
    monkeypatch.setattr(read_images, "_BUDGET", budget)
    whole = pictures.encoded(pictures.texture(0))
    files = [whole, whole[:-40], b"none", pictures.png_by_hand(60_000, 60_000, 8, 2, b"")]
    rows = []
    for number, data in enumerate(files * 4):
        (tmp_path / f"{number}.png").write_bytes(data)
        uri = uris.make(str(tmp_path / f"{number}.png"))
        rows.append({"uri": uri, "member": None, "bytes": None, "product": "p", "problem": None})
    kinds = {"member": pa.int64(), "bytes": pa.int64(), "problem": pa.string()}
    table = pa.Table.from_pylist(rows, pa.schema([(n, kinds.get(n, pa.string())) for n in rows[0]]))
    found = Read(InputSettings(size=32), DecodeSettings(), FetchSettings())(table)
    assert found["status"].to_pylist() == ["ok", "unreadable", "unreadable", "too_large"] * 4
    assert found["reason"].to_pylist()[0] is None
    with budget.reserved(2**40):  # waits until nothing is reserved
        pass


def test_what_was_left_out_of_a_file_is_the_reason_of_its_ok_row(tmp_path):
    damaged = pictures.encoded(pictures.texture(0))
    at = damaged.index(b"IDAT") - 4
    text = pictures.png_chunk(b"tEXt", b"key\0value")
    (tmp_path / "a.png").write_bytes(damaged[:at] + text[:-1] + b"?" + damaged[at:])
    row = {"uri": uris.make(str(tmp_path / "a.png")), "member": None, "bytes": None}
    schema = pa.schema(
        [("uri", pa.string()), ("member", pa.int64()), ("bytes", pa.int64()),
         ("product", pa.string()), ("problem", pa.string())]
    )  # fmt: skip
    rows = pa.Table.from_pylist([row | {"product": "p", "problem": None}], schema)
    (found,) = Read(InputSettings(size=32), DecodeSettings(), FetchSettings())(rows).to_pylist()
    assert found["status"] == "ok"
    assert found["reason"] == "its metadata are damaged and were not used (tEXt)"
    read = Read(InputSettings(size=32), DecodeSettings(), FetchSettings(), depths={"p": {12, 16}})
    (found,) = read(rows).to_pylist()
    assert found["reason"] == (
        "its metadata are damaged and were not used (tEXt); "
        "it has 8 bits, and the detector was fitted on images of 12, 16 bits"
    )
    for depths in ({"p": {8, 16}}, {"p": ()}, {"q": {16}}):
        other = Read(InputSettings(size=32), DecodeSettings(), FetchSettings(), depths=depths)
        assert other(rows)["reason"].to_pylist() == [
            "its metadata are damaged and were not used (tEXt)"
        ]
