"""Maps that number objects: what is no number of an object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.segmented import photo
from vitral.data.segments import read_segments
from vitral.errors import PictureError


def test_a_number_below_zero_is_no_object(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg", (1, 4))
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.array([[-1, 0, 1, 2]], dtype=np.int32)).save(tmp_path / "labels" / "a.tif")
    one: Any = read_segments(tmp_path, "instance").sets["train"]
    with pytest.raises(PictureError, match=r"a\.tif: It holds -1, .* void=\[-1\] \(--void -1\)\."):
        one.annotations(0)
    known: Any = read_segments(tmp_path, "instance", void=[-1]).sets["train"]
    assert known.annotations(0).masks.tolist() == [[[False, False, True, False]], [[False, False, False, True]]]
