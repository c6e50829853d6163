"""How many pixels the threads of one reader decode at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from ops.images import read_images
from ops.images.decode import DecodeSettings
from ops.images.fetch import FetchSettings
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
    with budget.reserved(2**40):  # waits until nothing is reserved
        pass
