"""Reading pictures: the right pixels from every kind of source, and a sentence for everything that is none."""

from __future__ import annotations

import base64
import inspect
import io
import os
import random
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from vitral.base.image import Picture, read_header, read_picture
from vitral.errors import FetchError, PictureError, UsageError

Array = np.ndarray[Any, Any]


def colours(height: int = 12, width: int = 17, channels: int = 3) -> Array:
    """Random pixels, the same each time."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(height * width * channels).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image | Array, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def photograph(height: int, width: int) -> Image.Image:
    """Something between a photograph and a test card: smooth colours, edges, and fine noise."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    picture = np.stack([np.sin(9 * x + 3 * y) ** 2, np.cos(12 * y * x) ** 2, (x + y) % 1], axis=-1) * 200
    picture[((x - 0.5) ** 2 + (y - 0.4) ** 2) < 0.05] = [230, 180, 20]
    noise = np.random.default_rng(0).normal(0, 4, picture.shape)
    return Image.fromarray(np.clip(picture + noise + 20, 0, 255).astype(np.uint8))


# -- sources ----------------------------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """A stream that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self.inner = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.inner.read(size)

    def seekable(self) -> bool:
        return False


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    pixels = colours()
    data = encoded(pixels)
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    read_before = io.BytesIO(data)
    read_before.read()
    with path.open("rb") as file:
        sources: dict[str, tuple[Any, str]] = {
            "string": (str(path), str(path)),
            "path": (path, str(path)),
            "bytes": (data, "<bytes>"),
            "bytearray": (bytearray(data), "<bytes>"),
            "memoryview": (memoryview(data), "<bytes>"),
            "file": (file, str(path)),
            "stream": (io.BytesIO(data), "<file>"),
            "stream at its end": (read_before, "<file>"),
            "pipe": (Pipe(data), "<file>"),
            "Pillow": (Image.fromarray(pixels), "<image>"),
            "opened by Pillow": (Image.open(path), "<image>"),
            "array": (pixels, "<array>"),
            "strided array": (np.ascontiguousarray(pixels[:, ::-1])[:, ::-1], "<array>"),
            "tensor": (torch.from_numpy(pixels), "<tensor>"),
            "tensor, channels first": (torch.from_numpy(pixels).permute(2, 0, 1), "<tensor>"),
            "base64": (text, "<base64>"),
            "wrapped base64": (base64.encodebytes(data).decode(), "<base64>"),
            "URL-safe base64 without padding": (base64.urlsafe_b64encode(data).decode().rstrip("="), "<base64>"),
            "data URI": (f"data:image/png;base64,{text}", "<data URI>"),
            "percent-encoded data URI": (f"DATA:,{''.join(f'%{byte:02x}' for byte in data)}", "<data URI>"),
        }
        for kind, (source, name) in sources.items():
            picture = read_picture(source)
            assert (picture.array == pixels).all(), kind
            assert (picture.size, picture.name, picture.image.mode) == ((12, 17), name, "RGB"), kind
    assert read_picture(data, name="mine").name == "mine"


def test_a_picture_is_returned_as_it_is() -> None:
    picture = read_picture(colours())
    assert read_picture(picture) is picture


def test_the_callers_file_stays_open() -> None:
    file = io.BytesIO(encoded(colours()))
    read_picture(file)
    assert not file.closed


def test_the_array_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        read_picture(colours()).array[0] = 0


@pytest.mark.parametrize("source", [None, 3, 2.5, ["a.png"], {"path": "a.png"}, object()])
def test_other_sources_are_refused(source: Any) -> None:
    with pytest.raises(UsageError, match=f"cannot be read from {type(source).__name__}"):
        inspect.unwrap(read_picture)(source)  # the function itself: the tests' type checker would refuse first


@pytest.mark.parametrize(
    "option",
    [{"at_least": (0, 5)}, {"background": (0, 0, 256)}, {"background": (-1, 0, 0)}, {"max_pixels": 0}],
)
def test_options_must_make_sense(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        read_picture(colours(), **option)


# -- arrays and tensors -----------------------------------------------------------------------------------------------


def test_grey_arrays_become_grey_pictures() -> None:
    grey = colours(channels=1)
    for source in (grey, grey[:, :, None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert (read_picture(source).array == grey[:, :, None]).all()


def test_deep_arrays_are_rounded_to_the_nearest_level() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(deep.astype(np.float64) / 65535 * 255).astype(np.uint8)[:, :, None]
    assert (read_picture(deep).array == expected).all()
    assert (read_picture(deep.astype(">u2")).array == expected).all()
    assert (read_picture(torch.from_numpy(deep)).array == expected).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_is_zero_to_one(dtype: type) -> None:
    levels = np.arange(256).reshape(16, 16)
    picture = read_picture((levels / 255).astype(dtype))
    assert (picture.array == levels[:, :, None]).all()


def test_tensors_of_training_are_read() -> None:
    levels = torch.tensor([[0.0, 0.5, 1.0]])
    assert read_picture(levels.clone().requires_grad_()).array[0, :, 0].tolist() == [0, 128, 255]
    assert read_picture(levels.to(torch.bfloat16)).array[0, :, 0].tolist() == [0, 128, 255]


def test_booleans_are_black_and_white() -> None:
    mask = colours(channels=1) > 128
    assert (read_picture(mask).array == np.where(mask, 255, 0)[:, :, None]).all()


def test_arrays_with_alpha_are_laid_over_the_background() -> None:
    pixels = colours(channels=4)
    alpha = pixels[:, :, 3:] / 255
    for source in (pixels, pixels / 255, torch.from_numpy(pixels).permute(2, 0, 1)):
        expected = pixels[:, :, :3] * alpha + np.array([10, 200, 30]) * (1 - alpha)
        got = read_picture(source, background=(10, 200, 30)).array
        assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 4, 5)), r"Its shape is \(3, 4, 5\).*transpose\(1, 2, 0\)"),
        (np.zeros((4, 5, 2)), r"1, 3 or 4 channels"),
        (np.zeros(7), r"Its shape is \(7,\)"),
        (np.zeros((1, 3, 4, 5)), r"Its shape is \(1, 3, 4, 5\)"),
        (np.zeros((0, 5)), "there is nothing in it"),
        (np.zeros((5, 0, 3), np.uint8), "there is nothing in it"),
        (np.full((2, 2), np.nan), "not numbers, or infinite"),
        (np.array([[0.0, np.inf]]), "not numbers, or infinite"),
        (np.array([[0.0, 200.0]]), r"lie in \[0, 200\], not in \[0, 1\]\. Divide by 255"),
        (np.array([[-2.1, 2.3]]), r"lie in \[-2\.1, 2\.3\].*Undo its normalisation"),
        (np.zeros((2, 2), np.int64), "int64, for which black and white are not defined"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.array([["a"]]), "<U1"),
        (np.array([[None]]), "object"),
    ],
)
def test_arrays_that_are_no_pictures_say_why(array: Array, reason: str) -> None:
    with pytest.raises(PictureError, match=reason) as failure:
        read_picture(array, name="mine")
    assert failure.value.name == "mine"


def test_an_array_over_the_limit_is_refused() -> None:
    with pytest.raises(PictureError, match=r"12 x 17 = 204 pixels, more than the 203"):
        read_picture(colours(), max_pixels=203)
    read_picture(colours(), max_pixels=204)


# -- modes and formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_formats_give_their_pixels(kind: str) -> None:
    pixels = colours()
    assert (read_picture(encoded(pixels, kind, **({"lossless": True} if kind == "WEBP" else {}))).array == pixels).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "MPO"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossy_formats_give_what_pillow_decodes(kind: str, mode: str) -> None:
    data = encoded(photograph(40, 61).convert(mode), kind)
    assert (read_picture(data).array == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "I;16", "F", "LA", "PA", "La", "RGBa"]
)
def test_pillow_images_of_any_mode_are_read(mode: str) -> None:
    image = photograph(16, 21)
    if mode in ("I;16", "F"):
        grey = np.asarray(image.convert("L"))
        image, expected = Image.fromarray(grey.astype(np.uint16) * 257), np.repeat(grey[:, :, None], 3, axis=2)
        image = image if mode == "I;16" else Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = image.convert({"LA": "L", "PA": "P", "La": "L"}.get(mode, "RGBA" if mode == "RGBa" else mode))
        image = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
        expected = np.asarray((image.convert("LA") if mode == "La" else image).convert("RGB"))
    assert image.mode == mode
    assert (read_picture(image).array == expected).all()


@pytest.mark.parametrize("quality", [60, 95])
def test_cmyk_jpegs_keep_their_colours(quality: int) -> None:
    """Adobe writes CMYK inverted, which shows as a negative where it is not heeded."""
    image = photograph(40, 60)
    data = encoded(image.convert("CMYK"), "JPEG", quality=quality)
    assert np.abs(read_picture(data).array.astype(int) - np.asarray(image)).mean() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_files_are_scaled(kind: str) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 11), dtype=np.uint16)
    expected = np.rint(deep / 65535 * 255)[:, :, None]
    assert (read_picture(encoded(deep, kind)).array == expected).all()
    if kind == "TIFF":
        assert (read_picture(encoded(deep.astype(np.int32), kind)).array == expected).all()
        assert (read_picture(encoded((deep / 65535).astype(np.float32), kind)).array == expected).all()


def test_deep_files_without_a_known_white_are_refused() -> None:
    with pytest.raises(PictureError, match=r"32-bit values lie in \[-1, 70000\]"):
        read_picture(encoded(np.array([[-1, 70000]], np.int32), "TIFF"))
    with pytest.raises(PictureError, match=r"lie in \[0, 3000\], not in \[0, 1\]"):
        read_picture(encoded(np.array([[0, 3000]], np.float32), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (20, 40, 250)])
def test_transparency_shows_the_background(mode: str, background: tuple[int, int, int]) -> None:
    pixels = Image.fromarray(colours(channels=4)).convert("LA" if mode == "LA" else "RGBA")
    image = pixels if mode in ("RGBA", "LA") else pixels.quantize(64)
    image = image.convert("PA") if mode == "PA" else image
    whole = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = whole[:, :, 3:] / 255
    expected = whole[:, :, :3] * alpha + np.array(background) * (1 - alpha)
    sources = [image] if mode == "PA" else [image, encoded(image)]
    for source in sources:
        assert np.abs(read_picture(source, background=background).array - expected).max() <= 1


def test_transparency_is_laid_over_white_as_transformers_does() -> None:
    from transformers.image_transforms import convert_to_rgb

    for image in (Image.fromarray(colours(40, 50, 4)), Image.fromarray(colours(40, 50, 4)).convert("LA")):
        assert (read_picture(image).array == convert_to_rgb(image, return_numpy=True)).all()


@pytest.mark.parametrize(("mode", "colour"), [("P", 3), ("L", 77), ("RGB", (1, 2, 3)), ("1", 0)])
def test_one_transparent_colour_shows_the_background(mode: str, colour: Any) -> None:
    image = Image.new(mode, (4, 3), colour)
    if mode == "P":
        image.putpalette(range(3 * 4))
    data = encoded(image, transparency=colour)
    assert (read_picture(data, background=(9, 8, 7)).array == [9, 8, 7]).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_the_first_of_several_frames_is_the_picture(kind: str) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "green", "blue")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.abs(read_picture(data).array.astype(int) - [255, 0, 0]).max() <= 3


# -- orientation ------------------------------------------------------------------------------------------------------


def with_orientation(image: Image.Image, turn: int, kind: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[274] = turn
    return encoded(image, kind, exif=exif, **options)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_come_upright(turn: int, kind: str) -> None:
    data = with_orientation(photograph(24, 40), turn, kind)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    picture = read_picture(data)
    assert picture.size == expected.size[::-1] == ((24, 40) if turn < 5 else (40, 24))
    assert (picture.array == np.asarray(expected)).all()
    assert (read_picture(Image.open(io.BytesIO(data))).array == picture.array).all()
    assert (read_picture(picture.image).array == picture.array).all()  # and are not turned again


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_does_not_cost_the_picture(exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_picture(encoded(photograph(24, 40), "JPEG", exif=exif)).size == (24, 40)


def test_an_unknown_orientation_is_none() -> None:
    assert read_picture(with_orientation(photograph(24, 40), 77, "JPEG")).size == (24, 40)


# -- reading less than everything -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("size", [(160, 240), (161, 243), (167, 255)])
def test_a_reduced_picture_lies_where_the_whole_one_does(turn: int, size: tuple[int, int]) -> None:
    """Resized from its box to a common size, the reduced picture agrees with the whole one, at the edges too."""
    y, x = np.mgrid[: size[0], : size[1]]
    smooth = np.stack([x * 255 / size[1], y * 255 / size[0], (x + y) * 255 / sum(size)], axis=-1)
    data = with_orientation(Image.fromarray(smooth.astype(np.uint8)), turn, "JPEG", quality=98, subsampling=0)
    whole = read_picture(data)
    for at_least, reduction in (((1, 1), 8), ((20, 20), 8), ((40, 40), 4), ((60, 60), 2), ((100, 100), 1)):
        picture = read_picture(data, at_least=at_least)
        upright = size if turn < 5 else size[::-1]
        assert picture.size == upright
        assert picture.reduced == (reduction > 1)
        assert picture.image.size == (-(-upright[1] // reduction), -(-upright[0] // reduction))
        common = (upright[1] // 16, upright[0] // 16)
        one = np.asarray(whole.image.resize(common, Image.Resampling.BILINEAR)).astype(int)
        other = np.asarray(picture.image.resize(common, Image.Resampling.BILINEAR, picture.box)).astype(int)
        assert np.abs(one - other).max() <= 2  # without the box, up to 10


@pytest.mark.parametrize("turn", [1, 6])
def test_upright_sides_stay_as_long_as_asked(turn: int) -> None:
    data = with_orientation(photograph(100, 400), turn, "JPEG")
    height, width = read_picture(data).size
    for at_least in [(height, width), (height // 2, width // 2), (height // 4 + 1, 1), (1, width // 4 + 1), (5, 5)]:
        image = read_picture(data, at_least=at_least).image
        assert image.height >= at_least[0]
        assert image.width >= at_least[1]
    assert read_picture(data, at_least=(height // 2, width // 2)).image.size == (width // 2, height // 2)
    assert read_picture(data, at_least=(10 * height, 10)).image.size == (width, height)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_other_formats_are_read_whole(kind: str) -> None:
    picture = read_picture(encoded(photograph(100, 200), kind), at_least=(5, 5))
    assert not picture.reduced
    assert picture.box is None


def test_a_pillow_image_of_the_callers_is_not_reduced() -> None:
    image = Image.open(io.BytesIO(encoded(photograph(100, 200), "JPEG")))
    assert read_picture(image, at_least=(5, 5)).image.size == image.size == (200, 100)


# -- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_header_tells_how_a_picture_lies(turn: int, tmp_path: Path) -> None:
    data = with_orientation(photograph(24, 40), turn, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        header = read_header(source)
        assert (header.stored, header.orientation, header.mode) == ((24, 40), turn, "RGB")
        assert header.size == read_picture(source).size


def test_a_header_is_read_without_the_picture() -> None:
    assert read_header(encoded(photograph(24, 40), "JPEG")[:700]).size == (24, 40)
    assert read_header(png_header(60_000, 60_000)).size == (60_000, 60_000)
    assert read_header(encoded(Image.new("I;16", (5, 3)))).mode == "I;16"
    assert read_header(np.zeros((3, 5), dtype=np.uint8)).mode == "L"


def test_headers_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(photograph(24, 40))[:20])
    with pytest.raises(PictureError, match=r"the one.*Did you mean 'photo.png'"):
        read_header(tmp_path / "photos.png", name="the one")
    with pytest.raises(PictureError, match="Its header could not be read"):
        read_header(tmp_path / "photo.png")
    with pytest.raises(PictureError, match="no picture in a format read here"):
        read_header(b"Dear picture, where are you?")
    with pytest.raises(PictureError, match="cannot be opened"):
        read_header(tmp_path)
    with pytest.raises(UsageError, match="not from BytesIO"):
        read_header(io.BytesIO(b""))


# -- what is no picture -----------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header announces this size, and that holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def tiff_header(width: int, height: int, strip: int = 100, tags: dict[int, int] | None = None) -> bytes:
    """A grey TIFF whose header announces this size, and that holds `strip` bytes."""
    entries = {
        256: width,
        257: height,
        258: 8,
        259: 1,
        262: 1,
        273: 200,
        277: 1,
        278: height,
        279: strip,
        **(tags or {}),
    }
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + directory + b"\0" * 4
    return head.ljust(200, b"\0") + b"\0" * strip


def text_bomb() -> bytes:
    information = PngImagePlugin.PngInfo()
    information.add_itxt("comment", "a" * 20_000_000, zip=True)
    return encoded(colours(), pnginfo=information)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "It is empty"),
    "text": (lambda: b"Dear picture, where are you? " * 9, "no picture in a format read here"),
    "web page": (lambda: b"<!DOCTYPE html><html></html>", "no picture in a format read here"),
    "zip": (lambda: b"PK\3\4" + b"\0" * 50, "no picture in a format read here"),
    "PDF": (lambda: b"%PDF-1.7\n" + b"\0" * 50, "no picture in a format read here"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture in a format read here"),
    "zeros": (lambda: bytes(1000), "no picture in a format read here"),
    "only a signature": (lambda: b"\x89PNG\r\n\x1a\n", "could not be decoded"),
    "truncated JPEG": (lambda: encoded(photograph(200, 300), "JPEG")[:4000], "could not be decoded.*incomplete"),
    "truncated PNG": (lambda: encoded(photograph(200, 300))[:4000], "could not be decoded"),
    "truncated WebP": (lambda: encoded(photograph(200, 300), "WEBP")[:1000], "could not be decoded"),
    "truncated AVIF": (lambda: encoded(photograph(200, 300), "AVIF")[:1000], "could not be decoded"),
    "truncated TIFF": (lambda: encoded(photograph(200, 300), "TIFF")[:4000], "could not be decoded"),
    "PNG of no width": (lambda: png_header(0, 5), "could not be decoded"),
    "PNG bomb": (lambda: png_header(100_000, 100_000), "100000 x 100000 = 10,000,000,000 pixels, more than"),
    "PNG of huge sides": (lambda: png_header(2**31 - 1, 2**31 - 1), "pixels, more than"),
    "PNG with nothing in it": (lambda: png_header(3000, 3000), "could not be decoded"),
    "real PNG bomb": (lambda: encoded(Image.new("1", (20_000, 20_000)), optimize=True), "20000 x 20000 = 400,000,000"),
    "PNG text bomb": (text_bomb, "could not be decoded"),
    "TIFF bomb": (lambda: tiff_header(60_000, 60_000), "60000 x 60000 = 3,600,000,000 pixels, more than"),
    "TIFF with nothing in it": (lambda: tiff_header(3000, 3000), "could not be decoded"),
    "TIFF of huge tiles": (lambda: tiff_header(100, 100, tags={322: 60_000, 323: 60_000, 324: 200, 325: 100}), "."),
    "GIF bomb": (lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(50), "."),
    "BMP bomb": (
        lambda: b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
        "more than",
    ),
    "PPM bomb": (lambda: b"P6 99999 99999 255\n" + bytes(99), "more than"),
    "WebP bomb": (lambda: b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\x3f\xff\xff\x3f" + bytes(8), "."),
    "JPEG of huge sides": (lambda: huge_jpeg(), "65500 x 65500 = 4,290,250,000 pixels, more than"),
}


def huge_jpeg() -> bytes:
    """A JPEG whose frame header was changed to announce 65500 x 65500 pixels."""
    data = encoded(photograph(16, 16), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 65500, 65500) + data[at + 4 :]


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bytes_end_in_a_sentence(kind: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[kind]
    data = make()
    path = tmp_path / "hostile.png"
    path.write_bytes(data)
    for source, name in ((data, "<bytes>"), (path, str(path))):
        begun = time.monotonic()
        with pytest.raises(PictureError, match=reason) as failure:
            read_picture(source)
        assert time.monotonic() - begun < 2
        assert failure.value.name == name
        assert str(failure.value).startswith(f"{name}: ")
        assert len(str(failure.value)) < 700


def test_the_pixel_limit_can_be_chosen() -> None:
    data = encoded(colours())
    assert read_picture(data, max_pixels=204).size == (12, 17)
    for source in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(PictureError, match="more than the 203"):
            read_picture(source, max_pixels=203)


def test_a_pillow_image_without_pixels_is_refused() -> None:
    with pytest.raises(PictureError, match="nothing in it"):
        read_picture(Image.new("RGB", (0, 5)))


def test_a_broken_pillow_image_is_a_picture_error() -> None:
    with pytest.raises(PictureError, match="Pillow could not give its pixels"):
        read_picture(Image.open(io.BytesIO(encoded(photograph(200, 300), "JPEG")[:4000])))


def seeds(kind: str) -> bytes:
    options: dict[str, Any] = {"append_images": [photograph(40, 56)], "save_all": True} if kind == "GIF" else {}
    if kind == "JPEG":
        return with_orientation(photograph(40, 56), 6, kind)
    return encoded(photograph(40, 56), kind, **options)


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Some bytes overwritten, cut out, or doubled."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 2, 8, 32])):
        at = dice.randrange(len(changed)) if dice.random() < 0.5 else dice.randrange(min(len(changed), 200))
        match dice.randrange(4):
            case 0:
                changed[at] = dice.randrange(256)
            case 1:
                changed[at : at + 4] = dice.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
            case 2 if len(changed) > 50:
                del changed[at : at + dice.randrange(1, 30)]
            case _:
                changed[at:at] = changed[at : at + dice.randrange(1, 30)]
    return bytes(changed)


def resealed(png: bytes) -> bytes:
    """A PNG with the checksums of its chunks put right, so that a changed one is not refused for its checksum alone."""
    sealed, at = png[:8], 8
    while at + 12 <= len(png):
        end = min(at + 8 + int.from_bytes(png[at : at + 4], "big"), len(png) - 4)
        sealed += struct.pack(">I", end - at - 8) + png[at + 4 : end] + struct.pack(">I", zlib.crc32(png[at + 4 : end]))
        at = end + 4
    return sealed


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_files_end_in_a_picture_or_a_sentence(kind: str) -> None:
    dice = random.Random(kind)
    original = seeds(kind)
    outcomes = {Picture: 0, PictureError: 0}
    for number in range(200):
        data = mutated(original, dice)
        data = resealed(data) if kind == "PNG" else data
        begun = time.monotonic()
        try:
            picture = read_picture(data, max_pixels=4_000_000, at_least=(10, 10) if number % 2 else None)
            assert picture.array.shape[2] == 3
            outcomes[Picture] += 1
        except PictureError:
            outcomes[PictureError] += 1
        assert time.monotonic() - begun < 5
    assert min(outcomes.values()) > 0


# -- paths and text ---------------------------------------------------------------------------------------------------


def test_a_missing_file_is_told_the_nearest_names(tmp_path: Path) -> None:
    for name in ("holiday_1.jpg", "holiday_2.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(encoded(colours()))
    with pytest.raises(PictureError, match=r"no such file\. Did you mean 'holiday_[12]\.jpg' or 'holiday_[12]\.jpg'"):
        read_picture(tmp_path / "holidy_1.jpg")
    with pytest.raises(PictureError, match="nothing of a similar name in"):
        read_picture(str(tmp_path / "qqqqqq"))
    with pytest.raises(PictureError, match="no folder"):
        read_picture(tmp_path / "nowhere" / "holiday_1.jpg")


def test_a_folder_a_pipe_and_a_device_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="It is a folder"):
        read_picture(tmp_path)
    with pytest.raises(PictureError, match="It is a folder"):
        read_picture("")
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(PictureError, match="a pipe, a device or a socket"):
            read_picture(special)


def test_what_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encoded(colours()))
    path.chmod(0)

    def locked(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", locked)  # to the superuser nothing is locked
    with pytest.raises(PictureError, match="not permitted"):
        read_picture(path)
    monkeypatch.setattr(Path, "stat", locked)
    with pytest.raises(PictureError, match="not permitted"):
        read_picture(path)


@pytest.mark.parametrize("text", ["a\0b.png", "x" * 5000, "é" * 300, "loop"])
def test_names_no_file_can_have(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(PictureError, match=r"no such file|cannot be opened") as failure:
        read_picture(text)
    assert len(failure.value.name) <= 1000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,", "It is empty"),
        ("data:image/png;base64,%%%", "is not base64"),
        ("data:image/png;base64,äöü", "is not base64"),
        ("data:text/plain,hello", "no picture in a format"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "no picture in a format"),
    ],
)
def test_data_uris_that_hold_no_picture(text: str, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        read_picture(text)


def test_truncated_base64_is_a_picture_error() -> None:
    text = base64.b64encode(encoded(photograph(40, 60))).decode()
    for end in (40, 41, 42, 43, 400, 1001):
        with pytest.raises(PictureError):
            read_picture(text[:end])


def test_a_file_comes_before_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = base64.b64encode(encoded(Image.new("1", (1, 1)))).decode().replace("/", "_")
    (tmp_path / text).write_bytes(encoded(colours()))
    assert read_picture(text).size == (12, 17)
    assert read_picture(text, allow_paths=False).size == (1, 1)


def test_paths_can_be_closed_to_strangers(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(colours()))
    for source in (str(path), path, str(tmp_path / "missing.png")):
        with pytest.raises(PictureError, match="Paths are not read here"):
            read_picture(source, allow_paths=False)
    with pytest.raises(FetchError, match="not fetched here"):
        read_picture("https://example.org/a.png", allow_urls=False)


def test_files_that_are_not_binary_or_not_open() -> None:
    with pytest.raises(PictureError, match="gave str, not bytes"):
        read_picture(io.StringIO("text"))
    closed = io.BytesIO(encoded(colours()))
    closed.close()
    with pytest.raises(PictureError, match="could not be read"):
        read_picture(closed)


# -- being a good neighbour -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count open files")
@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_no_file_stays_open(tmp_path: Path) -> None:
    frames = [photograph(20, 30), photograph(20, 30).rotate(180)]
    paths = [tmp_path / f"picture.{kind.lower()}" for kind in ("GIF", "PNG", "WEBP", "TIFF", "JPEG", "BMP", "PPM", "AVIF")]
    for path in paths:
        several = {"save_all": True, "append_images": frames[1:]} if path.suffix in {".gif", ".tiff", ".webp"} else {}
        frames[0].save(path, **several)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(encoded(photograph(200, 300), "JPEG")[:2000])
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [read_picture(path) for path in paths for _ in range(3)]
    for _ in range(5):
        with pytest.raises(PictureError):
            read_picture(broken)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(picture.array.shape == (20, 30, 3) for picture in kept)


def test_pillows_settings_and_warnings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from several threads, also where warnings are errors, also where Pillow's own limit is lower than ours."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    good = [
        with_orientation(photograph(64, 64), 6, "JPEG"),
        encoded(colours(64, 64, 4)),
        encoded(colours(64, 64), "BMP"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            pictures = list(pool.map(lambda number: read_picture(good[number % 3]), range(60)))
            refused = list(pool.map(lambda _: refusal(HOSTILE["PNG bomb"][0]()), range(20)))
        assert warnings.filters == filters
    assert {picture.size for picture in pictures} == {(64, 64)}
    assert all("pixels, more than" in reason for reason in refused)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def refusal(data: bytes) -> str:
    with pytest.raises(PictureError) as failure:
        read_picture(data)
    return failure.value.reason


def test_reading_pictures_does_not_import_torch() -> None:
    code = "import sys, vitral.base.image; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
