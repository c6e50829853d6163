"""How many pixels the threads of one reader decode at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from ops.archives.fetch import FetchSettings
from ops.images import read_images
from ops.images.decode import DecodeSettings
from ops.images.packed_pixels import views
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


def table_of(folder, files) -> pa.Table:
    """Rows of files that are written to a folder."""
    rows = []
    for number, data in enumerate(files):
        (folder / f"{number:03}.png").write_bytes(data)
        uri = uris.make(str(folder / f"{number:03}.png"))
        size = len(data) if number % 2 else None
        rows.append({"uri": uri, "member": None, "bytes": size, "product": "p", "problem": None})
    kinds = {"member": pa.int64(), "bytes": pa.int64(), "problem": pa.string()}
    return pa.Table.from_pylist(rows, pa.schema([(n, kinds.get(n, pa.string())) for n in rows[0]]))


TILES = InputSettings(size=32, fit="tile")


def test_whole_pictures_come_in_pieces_of_bounded_bytes_and_are_those_of_one_call(
    tmp_path, monkeypatch
):
    sizes = [(64, 64)] * 5 + [(300, 200)] + [(64, 64)] * 3 + [(20, 700), (700, 20), (8, 8)]
    random = np.random.default_rng(0)
    files = [pictures.encoded(random.integers(0, 256, size, np.uint8)) for size in sizes]
    files.insert(3, b"none")
    table = table_of(tmp_path, files)
    monkeypatch.setattr(read_images, "_PICTURES", 2**16)
    monkeypatch.setattr(read_images, "_PIECE", 2 * 64 * 64)
    read = Read(TILES, DecodeSettings(), FetchSettings())
    pieces = list(read.pieces(table))
    assert pa.concat_tables(pieces).equals(read(table).combine_chunks())
    assert [len(piece) for piece in pieces] == [2, 3, 2, 2, 2, 1, 1]
    whole = pa.concat_tables(pieces).to_pylist()
    assert whole[3]["status"] == "unreadable"
    assert [len(row["pixels"]) for row in whole if row["status"] == "ok"] == [
        height * width for height, width in sizes
    ]
    assert (whole[6]["width"], whole[6]["height"]) == (200, 300)
    (empty,) = read.pieces(table.slice(0, 0))
    assert empty.equals(read(table.slice(0, 0)))


def test_a_reader_of_pieces_holds_its_budget_and_one_picture(tmp_path, monkeypatch):
    big, small = (pictures.encoded(np.zeros((side, side), np.uint8)) for side in (200, 20))
    table = table_of(tmp_path, [big, small, small, big, big, big, small, big, small] * 3)
    monkeypatch.setattr(read_images, "_PICTURES", 14 * 200 * 200)
    monkeypatch.setattr(read_images, "_PIECE", 1000)
    alive, most, lock = [0], [0], threading.Lock()
    decode = read_images.decode

    def counted(data, settings, admit):
        def admitted(pixels):
            admit(pixels)
            with lock:
                alive[0] += pixels
                most[0] = max(most[0], alive[0])

        return decode(data, settings, admitted)

    monkeypatch.setattr(read_images, "decode", counted)
    for piece in Read(TILES, DecodeSettings(), FetchSettings()).pieces(table):
        threading.Event().wait(0.01)  # readers have time to hold more than they may
        with lock:
            alive[0] -= sum(len(view) for view in views(piece["pixels"]))
    assert alive[0] == 0
    assert most[0] <= 3 * 200 * 200  # one beside the budget, and one that was just handed on


def test_pieces_that_nobody_takes_leave_no_thread_waiting(tmp_path, monkeypatch):
    files = [pictures.encoded(pictures.texture(seed)) for seed in range(20)]
    table = table_of(tmp_path, files)
    monkeypatch.setattr(read_images, "_PICTURES", 1)
    monkeypatch.setattr(read_images, "_PIECE", 1)
    read = Read(TILES, DecodeSettings(), FetchSettings(), threads=3)
    pieces = read.pieces(table)
    next(pieces)
    pieces.close()
    assert len(list(read.pieces(table))) == 20  # the same three threads are free


def test_a_picture_with_too_many_tiles_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(read_images, "TILE_BITS", 2)
    table = table_of(tmp_path, [pictures.encoded(pictures.texture(0))])
    (row,) = Read(TILES, DecodeSettings(), FetchSettings())(table).to_pylist()
    assert (row["status"], row["reason"]) == (
        "too_large",
        "64 x 64 has 9 tiles, more than the limit of 4; fit with a lower input.overlap or "
        "input.scale",
    )
