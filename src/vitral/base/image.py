"""One door for pictures: whatever comes in, an upright RGB picture or a sentence saying why not comes out.

Pillow decodes; this page decides. It looks at the header before it decodes, so that a small file cannot unfold into
gigabytes, and touches none of Pillow's global settings, so that it can be called from several threads and beside other
users of Pillow.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import io
import itertools
import os
import re
import stat
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vitral.base.fetch import fetch
from vitral.errors import FetchError, PictureError, UsageError

__all__ = ["MAX_PIXELS", "PICTURE_SUFFIXES", "Header", "Picture", "PictureSource", "read_header", "read_picture"]

_COMMON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
PICTURE_SUFFIXES = frozenset((*_COMMON, ".ppm", ".pgm", ".pbm", ".pnm", ".mpo", ".avif", ".jp2"))
"""The suffixes of files that are taken for pictures, in lower case."""

MAX_PIXELS = 178_956_970  # where Pillow itself begins to refuse: half a gigabyte of RGB

# The formats that are read, and nothing else Pillow knows: each further decoder is one more that strangers can feed.
# (A phone's MPO file is a JPEG with a second one behind it; the first is the picture.)
_FORMATS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}

# EXIF 2.32, section 4.6.4 A, tag 274: how to turn a picture upright. 1 is upright already.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})  # the turns that exchange height and width,
_RIGHT_TO_LEFT = frozenset({2, 3, 6, 7})  # those after which the file's last column or row is the first column,
_BOTTOM_TO_TOP = frozenset({3, 4, 7, 8})  # and the first row

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An upright RGB picture that knows its original size and its name.

    Args:
        image: the pixels, mode RGB. Not a copy if a Pillow image in mode RGB came in.
        size: (height, width) of the original, upright, in pixels, also where `image` was decoded smaller.
        name: its path, its address, or what it came as ("<bytes>", "<array>").
        box: the part of `image` that shows the original, (x0, y0, x1, y1) in its pixels; None: all of it. A JPEG's
            outer row and column reach beyond the original where its sides are no multiples of the reduction.
    """

    image: Image.Image
    size: tuple[int, int]
    name: str
    box: tuple[float, float, float, float] | None = None

    @property
    def reduced(self) -> bool:
        """Whether `image` holds fewer pixels than the original."""
        return self.image.size != self.size[::-1]

    @property
    def array(self) -> UInt8[np.ndarray, "y x 3"]:
        """The pixels of `image`, read-only."""
        array = np.asarray(self.image)
        array.flags.writeable = False
        return array


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture says of itself before anything is decoded.

    Attributes:
        stored: (height, width) as it is stored, in pixels.
        orientation: how EXIF turns it upright, 1 to 8 (EXIF 2.32, section 4.6.4 A, tag 274); 1: not at all.
        mode: what a pixel is, as Pillow calls it: "RGB", "L", "P", "I;16" and so on.
    """

    stored: tuple[int, int]
    orientation: int
    mode: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright picture, in pixels."""
        return self.stored[::-1] if self.orientation in _SIDEWAYS else self.stored


@runtime_checkable
class _Readable(Protocol):
    """An open file, as far as reading it needs."""

    def read(self, size: int = -1, /) -> Any: ...


@runtime_checkable
class _TensorLike(Protocol):
    """A torch tensor, seen without importing torch."""

    def detach(self) -> Any: ...

    def cpu(self) -> Any: ...


_File: TypeAlias = io.BytesIO | io.BufferedReader
_Bytes: TypeAlias = bytes | bytearray | memoryview
_Pixels: TypeAlias = Image.Image | npt.NDArray[Any] | _TensorLike
PictureSource: TypeAlias = str | os.PathLike[str] | _Bytes | _Readable | _Pixels | Picture


@dataclass(frozen=True, slots=True)
class _Wish:
    """How a picture should be read: `read_picture`'s options, on their way down."""

    at_least: tuple[int, int] | None
    background: tuple[int, int, int]
    max_pixels: int


def read_picture(
    source: PictureSource,
    *,
    name: str | None = None,
    at_least: tuple[int, int] | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    max_pixels: int = MAX_PIXELS,
    allow_urls: bool = True,
    allow_paths: bool = True,
    timeout: float = 10.0,
) -> Picture:
    """Read a picture from wherever it is.

    The EXIF orientation is applied, transparency is laid over `background`, the first frame of several is taken, and
    16-bit greyscale is scaled to 8 bits by 255/65535. Embedded colour profiles are not applied, as none of the
    published preprocessings do.

    Args:
        source: one of
            - a path, or an http(s) address (see `vitral.base.fetch`), as a string or a path object;
            - the bytes of a picture file, a file opened in binary mode, a `data:` URI, or base64 as a string;
            - a Pillow image in any mode;
            - a numpy array (y, x), (y, x, 1), (y, x, 3) or (y, x, 4): grey, RGB or RGBA, never BGR; bool, uint8,
              uint16 (65535 is white) or floating point in [0, 1];
            - a torch tensor of the same kinds, which may also be (c, y, x);
            - a `Picture`, which is returned as it is.
        name: what to call it in messages, instead of its path, its address or "<bytes>".
        at_least: (height, width) that are enough. A JPEG may then be decoded at 1/2, 1/4 or 1/8, straight from its
            coefficients and several times faster, as long as both upright sides stay at least as long as these.
        background: the RGB colour that shows through transparency, 0 to 255.
        max_pixels: the largest height x width that is decoded.
        allow_urls: whether strings may be addresses.
        allow_paths: whether strings may be paths. Say no wherever a stranger can choose the string.
        timeout: seconds a fetch may take in all.

    Raises:
        PictureError: anything wrong with the picture; the message names it and the reason.
        FetchError: the same for its address.
        UsageError: a source of another type, or an option out of its range.
    """
    wish = _wish(at_least, background, max_pixels)
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return _from_image(source, name or "<image>", wish)
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "<array>", wish)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), name or "<bytes>", wish)
    if isinstance(source, str) and source[:5].lower() == "data:":
        label = name or "<data URI>"
        return _decode(io.BytesIO(_data_uri(source, label)), label, wish)
    if isinstance(source, str) and _ADDRESS.match(source):
        if not allow_urls:
            raise FetchError(name or _shortened(source), "Addresses are not fetched here. Pass the picture's bytes.")
        return _decode(io.BytesIO(fetch(source, timeout=timeout)), name or _shortened(source), wish)
    if isinstance(source, str | os.PathLike):
        return _from_path(source, name, wish, allow_paths)
    if isinstance(source, _TensorLike):
        label = name or "<tensor>"
        return _from_array(_array_of(source, label), label, wish)
    if isinstance(source, _Readable):
        label = name or str(getattr(source, "name", "<file>"))
        return _decode(io.BytesIO(_contents(source, label)), label, wish)
    raise UsageError(
        f"A picture cannot be read from {type(source).__name__}. Pass a path, an address, bytes, an open file, "
        "a Pillow image, a numpy array or a torch tensor."
    )


def read_header(source: PictureSource, *, name: str | None = None) -> Header:
    """Read what a picture says of itself, and decode nothing.

    Args:
        source: a path, the bytes of a picture file, or a numpy array (y, x) or (y, x, c).
        name: what to call it in messages, instead of its path or "<bytes>".

    Raises:
        PictureError: it is not there, or no picture in a format read here.
        UsageError: a source of another type.
    """
    if isinstance(source, np.ndarray):
        return Header((source.shape[0], source.shape[1]), 1, "L" if source.ndim == 2 else "RGB")
    if isinstance(source, bytes | bytearray | memoryview):
        return _header(io.BytesIO(source), name or "<bytes>")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        label = name or str(path)
        try:
            with path.open("rb") as file:
                return _header(file, label)
        except FileNotFoundError as error:
            raise PictureError(label, _missing(path)) from error
        except OSError as error:
            raise PictureError(label, f"It cannot be opened ({_brief(error)}).") from error
    raise UsageError(f"A header is read from a path, bytes or a numpy array, not from {type(source).__name__}.")


def _header(file: _File, name: str) -> Header:
    """What an open file says of itself."""
    try:
        image = _open(file, name)
        return Header((image.height, image.width), _orientation(image), image.mode)
    except PictureError:
        raise
    except Exception as error:  # a decoder fed with garbage raises whatever it likes
        raise PictureError(name, f"Its header could not be read ({_brief(error)}).") from error


def _wish(at_least: tuple[int, int] | None, background: tuple[int, int, int], max_pixels: int) -> _Wish:
    """The options, if they make sense."""
    if at_least is not None and (len(at_least) != 2 or min(at_least) < 1):
        raise UsageError(f"at_least must be a (height, width) of at least 1 pixel each, but is {at_least!r}.")
    if len(background) != 3 or min(background) < 0 or max(background) > 255:
        raise UsageError(f"background must be an RGB colour of three values from 0 to 255, but is {background!r}.")
    if max_pixels < 1:
        raise UsageError(f"max_pixels must be at least 1, but is {max_pixels}.")
    return _Wish(at_least, background, max_pixels)


# -- files ------------------------------------------------------------------------------------------------------------


def _decode(file: _File, name: str, wish: _Wish) -> Picture:
    """Decode an open, seekable file."""
    try:
        image = _open(file, name)
        width, height = image.size
        _check_size((height, width), name, wish)
        reduction = _reduce(image, wish)
        image.load()
        turn = _orientation(image)
        upright = image if image.mode == "RGB" and not image.has_transparency_data else _to_rgb(image, name, wish)
        if turn != 1:
            upright = _turned(upright, turn)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(name, f"It would unfold to far more pixels than a picture has ({_brief(error)}).") from error
    except Exception as error:  # a decoder fed with garbage raises whatever it likes
        advice = "It may be incomplete or damaged: open it in a viewer, or fetch it again."
        raise PictureError(name, f"It could not be decoded ({_brief(error)}). {advice}") from error
    size = (width, height) if turn in _SIDEWAYS else (height, width)
    return Picture(upright, size, name, _box(size, upright, reduction, turn) if reduction > 1 else None)


def _open(file: _File, name: str) -> ImageFile.ImageFile:
    """Read the header with the one decoder that knows it.

    Not `Image.open`, which holds the size against a process-wide limit, as a warning that cannot be caught without
    changing the filters of every other thread.
    """
    prefix = file.read(16)
    if not prefix:
        raise PictureError(name, "It is empty (0 bytes). Was it written, or fetched, to its end?")
    kind = _format_of(prefix)
    if kind is None:
        known = ", ".join(_FORMATS)
        raise PictureError(name, f"It is no picture in a format read here ({known}); it begins with {prefix!r}.")
    file.seek(0)
    return _FORMATS[kind](file)


def _format_of(prefix: bytes) -> str | None:
    """The format whose files begin like this (16 bytes), if it is one of ours and this Pillow was built with it."""
    for kind in _FORMATS:
        _, accepts = Image.OPEN[kind]
        if accepts is not None and accepts(prefix) is True:
            return kind
    return None


def _check_size(size: tuple[int, ...], name: str, wish: _Wish) -> None:
    """Refuse a picture with no pixels, or with too many."""
    height, width = size
    if height < 1 or width < 1:
        raise PictureError(name, f"It is {height} x {width} pixels (height x width): there is nothing in it.")
    if height * width > wish.max_pixels:
        raise PictureError(
            name,
            f"It has {height} x {width} = {height * width:,} pixels, more than the {wish.max_pixels:,} that are "
            "decoded. Make it smaller, or raise `max_pixels` if you trust it.",
        )


def _reduce(image: ImageFile.ImageFile, wish: _Wish) -> int:
    """Have a JPEG decoded at a fraction of its size, if that is enough; returns the fraction's denominator."""
    if wish.at_least is None or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    height, width = wish.at_least[::-1] if _orientation(image) in _SIDEWAYS else wish.at_least
    original = image.size[0]
    drafted = image.draft(None, (width, height))
    return round(original / drafted[1][2]) if drafted else 1


def _box(size: tuple[int, int], upright: Image.Image, reduction: int, turn: int) -> tuple[float, float, float, float]:
    """Where the original of `size` lies in its reduced, turned decoding."""
    height, width = size[0] / reduction, size[1] / reduction
    left = upright.width - width if turn in _RIGHT_TO_LEFT else 0.0
    top = upright.height - height if turn in _BOTTOM_TO_TOP else 0.0
    return left, top, left + width, top + height


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF costs the orientation, not the picture
        return 1
    return int(value) if value in _TURNS else 1


def _turned(image: Image.Image, turn: int) -> Image.Image:
    """The picture upright, and without the note that it is not."""
    upright = image.transpose(_TURNS[turn])
    upright.info = {}
    return upright


def _to_rgb(image: Image.Image, name: str, wish: _Wish) -> Image.Image:
    """Any mode as RGB: deep grey scaled down, transparency laid over the background."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_bytes(_deep(image, name), name))
    if image.mode == "La":  # premultiplied grey has only this one way out
        image = image.convert("LA")
    if image.has_transparency_data:
        below = Image.new("RGBA", image.size, (*wish.background, 255))
        image = Image.alpha_composite(below, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep(image: Image.Image, name: str) -> npt.NDArray[Any]:
    """The values of a grey picture of more than 8 bits: 16-bit ones, and floating point as it is."""
    values = np.asarray(image)
    if image.mode != "I":
        return values
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise PictureError(name, f"Its 32-bit values lie in [{low}, {high}], not in [0, 65535]. Scale them first.")
    return values.astype(np.uint16)


# -- pixels in memory -------------------------------------------------------------------------------------------------


def _from_image(image: Image.Image, name: str, wish: _Wish) -> Picture:
    """A Pillow image in any mode, opened or made."""
    _check_size(image.size[::-1], name, wish)
    try:
        image.load()
        turn, upright = _orientation(image), _to_rgb(image, name, wish)
        if turn != 1:
            upright = _turned(upright, turn)
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(name, f"Pillow could not give its pixels as RGB ({_brief(error)}).") from error
    return Picture(upright, (upright.height, upright.width), name)


def _from_array(array: npt.NDArray[Any], name: str, wish: _Wish) -> Picture:
    """An array (y, x) or (y, x, c)."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        advice = " Move its channels last: array.transpose(1, 2, 0)." if array.ndim == 3 else ""
        raise PictureError(name, f"Its shape is {array.shape}, not (y, x) or (y, x, 1, 3 or 4 channels).{advice}")
    _check_size(array.shape[:2], name, wish)
    pixels = _to_bytes(array, name)
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    return Picture(_to_rgb(image, name, wish), (image.height, image.width), name)


def _array_of(tensor: _TensorLike, name: str) -> npt.NDArray[Any]:
    """A tensor (y, x), (c, y, x) or (y, x, c) as an array with its channels last."""
    try:
        values = tensor.detach().cpu()
        array = np.asarray(values.float() if str(values.dtype) == "torch.bfloat16" else values)
    except Exception as error:
        raise PictureError(name, f"The tensor could not be read as an array ({_brief(error)}).") from error
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] in (1, 3, 4) else array


def _to_bytes(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Pixel values as 0 to 255, rounded to the nearest: from bool, uint8, uint16, or floating point in [0, 1]."""
    kind = (array.dtype.kind, array.dtype.itemsize)
    if kind == ("u", 1):
        return np.ascontiguousarray(array)
    if kind == ("b", 1):
        return array.astype(np.uint8) * np.uint8(255)
    if kind == ("u", 2):
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind[0] != "f":
        advice = "Pass uint8 (astype(np.uint8) if they lie in 0 to 255), uint16, bool or floating point in [0, 1]."
        raise PictureError(name, f"Its values are {array.dtype}, for which black and white are not defined. {advice}")
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise PictureError(name, "Some of its values are not numbers, or infinite. Replace them first.")
    if low < -1e-6 or high > 1 + 1e-6:
        advice = "Divide by 255." if low >= 0 and 1 < high <= 255 else "Undo its normalisation, or scale it."
        raise PictureError(name, f"Its floating point values lie in [{low:.4g}, {high:.4g}], not in [0, 1]. {advice}")
    return np.clip(np.rint(array.astype(np.float64) * 255), 0, 255).astype(np.uint8)


# -- paths, text and streams ------------------------------------------------------------------------------------------


def _from_path(source: str | os.PathLike[str], name: str | None, wish: _Wish, allow_paths: bool) -> Picture:
    """A path; or a string that is the base64 of a picture, unless a file has that name."""
    text = str(source)
    label = name or (text if len(text) <= 1000 else _shortened(text))
    path = Path(os.path.expanduser(source))  # noqa: PTH111 - unlike pathlib's, it lets a stranger's home be
    mode = _mode(path, label) if allow_paths else None
    if mode is None and isinstance(source, str):
        data = _base64(source)
        if data is not None:
            return _decode(io.BytesIO(data), name or "<base64>", wish)
    if not allow_paths:
        raise PictureError(label, "Paths are not read here. Pass the picture's bytes, or base64 in a string.")
    if mode is None:
        raise PictureError(label, _missing(path))
    if stat.S_ISDIR(mode):
        raise PictureError(label, "It is a folder, not a picture. Name a file in it.")
    if not stat.S_ISREG(mode):  # opening a pipe or a device could wait for ever
        raise PictureError(label, "It is a pipe, a device or a socket, not a file. Read it and pass its bytes.")
    try:
        file = path.open("rb")
    except PermissionError as error:
        raise PictureError(label, "Reading it is not permitted to this user. Check the permissions.") from error
    except OSError as error:
        raise PictureError(label, f"It cannot be opened ({_brief(error)}).") from error
    with file:
        return _decode(file, label, wish)


def _mode(path: Path, name: str) -> int | None:
    """What kind of file a path names; None where there is nothing."""
    try:
        return path.stat().st_mode
    except PermissionError as error:
        raise PictureError(name, "Reading it is not permitted to this user. Check the permissions.") from error
    except (OSError, ValueError):  # no such file, a name too long to be one, or one with a null character
        return None


def _missing(path: Path) -> str:
    """What to say about a file that is not there: the nearest names, or the folder that is missing too."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, 5000) if entry.name != path.name]
    except (OSError, ValueError):
        return f"There is no such file, and no folder {_shortened(str(path.parent))!r} that can be read."
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if near:
        return f"There is no such file. Did you mean {' or '.join(repr(name) for name in near)}?"
    return f"There is no such file, and nothing of a similar name in {_shortened(str(path.parent.resolve()))!r}."


def _data_uri(uri: str, name: str) -> bytes:
    """The bytes in a `data:` URI (RFC 2397)."""
    head, comma, body = uri.partition(",")
    if not comma:
        raise PictureError(name, "The data URI has no comma. It should look like data:image/png;base64,iVBOR….")
    data = urllib.parse.unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return data
    try:
        return _unbase64(data.decode("ascii"))
    except (binascii.Error, UnicodeDecodeError) as error:
        raise PictureError(name, f"What follows the comma of the data URI is not base64 ({_brief(error)}).") from error


def _base64(text: str) -> bytes | None:
    """The bytes behind a bare base64 string, if a picture's file begins with them."""
    try:
        return _unbase64(text) if _format_of(_unbase64(text.lstrip()[:24])) else None
    except (binascii.Error, ValueError):
        return None


def _unbase64(text: str) -> bytes:
    """Decode base64: standard or URL-safe, wrapped or not, padded or not."""
    compact = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


def _contents(file: _Readable, name: str) -> bytes:
    """Everything in an open file, from its beginning if it can go there."""
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)  # type: ignore[attr-defined]
        data = file.read()
    except Exception as error:
        raise PictureError(name, f"The file could not be read ({_brief(error)}).") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise PictureError(name, f"The file gave {type(data).__name__}, not bytes. Open it in binary mode, 'rb'.")
    return bytes(data)


def _shortened(text: str) -> str:
    """A name fit for a message."""
    return text if len(text) <= 200 else text[:199] + "…"


def _brief(error: Exception) -> str:
    """An exception in a few words."""
    return (str(error).rstrip(".") or type(error).__name__)[:200]
