"""The memory that decoding a large TIFF takes, in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile

from tests.conftest import ROOT

SIDE = 4096
MIB = 2**20
#: Beside the picture: strips or tiles that are read at a time, bands of rows, and their copies.
BUFFER = 32 * MIB
#: Prints the most memory that decoding the file took beyond what was held before.
CODE = """
import sys
from pathlib import Path
from ops.images.decode import DecodeSettings, decode

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

settings, data = DecodeSettings(range="0,1"), Path(sys.argv[1]).read_bytes()
decode(Path(sys.argv[2]).read_bytes(), settings)  # loads what every decoder needs
before = held("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
pixels = decode(data, settings).pixels
print(held("VmHWM") - before, pixels.nbytes)
"""


def drawn(kind: str) -> np.ndarray:
    """Noise, so that no compression makes it small, in lines that repeat, so that it is quick."""
    random = np.random.default_rng(0)
    shape = {"rgba": (64, SIDE, 4), "planes": (1, 64, SIDE), "float": (64, SIDE)}
    lines = random.integers(0, 256, shape.get(kind, (64, SIDE, 3)), np.uint8)
    if kind == "float":
        lines = (lines / 255).astype(np.float32)
    if kind == "planes":
        return np.tile(lines, (3, SIDE // 64, 1))
    return np.tile(lines, (SIDE // 64, *[1] * (lines.ndim - 1)))


@pytest.mark.parametrize(
    ("kind", "options", "stored"),
    [
        ("strips", {"rowsperstrip": 16}, 0),
        ("tiles", {"tile": (256, 256), "compression": "lzw"}, 0),
        ("planes", {"planarconfig": "separate", "rowsperstrip": 16}, 0),
        # Samples of another form than the picture's are held beside it.
        ("rgba", {"extrasamples": ["unassalpha"], "rowsperstrip": 16}, 4),
        ("float", {"photometric": "minisblack", "rowsperstrip": 16}, 4),
    ],
)
def test_nothing_is_held_but_the_picture_its_samples_and_a_buffer(tmp_path, kind, options, stored):
    large, small = tmp_path / "large.tif", tmp_path / "small.tif"
    options = {"photometric": "rgb"} | options
    pixels = drawn(kind)
    tifffile.imwrite(large, pixels, **options)
    part = pixels[:, :256, :256] if kind == "planes" else pixels[:256, :256]
    tifffile.imwrite(small, part, **options)
    done = subprocess.run(
        [sys.executable, "-c", CODE, large, small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    peak, size = map(int, done.stdout.split())
    assert size == SIDE**2 * (2 if kind == "float" else 3)
    assert size <= peak + 8 * MIB
    assert peak <= size + stored * SIDE**2 + BUFFER
