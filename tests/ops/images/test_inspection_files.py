"""Files of inspection masks: named after detectors alone, and refused if they are others."""

import numpy as np
import pytest

from ops.errors import UserError
from ops.images.inspection import InspectionMask
from ops.images.inspection_files import hashes, read_masks, write_masks
from ops.storage import files, paths
from tests import pictures

NAMES = ("nut", "../bolt #1%", "nut/top", "CON", "_joint")


@pytest.fixture
def masks() -> dict[str, InspectionMask]:
    drawn = (np.arange(40).reshape(5, 8) < 8 * number + 4 for number in range(len(NAMES)))
    return dict(zip(NAMES, map(InspectionMask.of, drawn), strict=True))


def test_masks_are_read_back_and_lie_in_their_folder(tmp_path, masks):
    folder = str(tmp_path / "model")
    write_masks(folder, masks)
    assert read_masks(folder, hashes(masks)) == masks
    assert read_masks(folder, hashes(masks), ["nut", "washer"]) == {"nut": masks["nut"]}
    assert read_masks(folder, {}) == {}
    listed = {item.name for item in files.listing(str(tmp_path))}
    assert listed == {f"model/{paths.mask_file(name)}" for name in NAMES}


def test_a_file_that_is_gone_or_another_is_refused(tmp_path, masks):
    folder, known = str(tmp_path), hashes(masks)
    write_masks(folder, masks)
    (tmp_path / "nut.mask.png").write_bytes(masks["CON"].png)
    with pytest.raises(UserError, match=r"nut.mask.png is not the inspection mask that the model"):
        read_masks(folder, known)
    (tmp_path / "nut.mask.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"nut.mask.png is no inspection mask: it is no image"):
        read_masks(folder, known)
    (tmp_path / "nut.mask.png").write_bytes(b"\0" * (2**23 + 1))
    with pytest.raises(UserError, match=r"nut.mask.png is too large for an inspection mask"):
        read_masks(folder, known)
    huge = pictures.png_by_hand(2**14, 2**13, 1, 0, b"\0" * 10)
    (tmp_path / "nut.mask.png").write_bytes(huge)
    with pytest.raises(UserError, match=r"it has more than 16,777,216 pixels"):
        read_masks(folder, known)
    (tmp_path / "nut.mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"nut.mask.png is missing"):
        read_masks(folder, known)
