"""Every file becomes an upright RGB image or an ImageError with one line; nothing else."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl.data.images.decode import IMAGE_SUFFIXES, MAX_PIXELS, ImageError, decode, decode_crops, resize, resize_into
from tcl.data.processor import Processor
from tcl.data.tokenizer import CaptionTokenizer

LEFT_RIGHT = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8).repeat(8, 0).repeat(8, 1)  # red | blue, 8 x 16


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*item) for item in chunks) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG of which only the declared size exists."""
    return png(width, height, (b"IDAT", zlib.compress(b"\0" * 100)))


def looping_tiff() -> bytes:
    """A TIFF whose directory of one page names itself as the next."""
    data = encoded(Image.fromarray(LEFT_RIGHT), "TIFF")
    start = struct.unpack("<I", data[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0]
    return data[:end] + data[4:8] + data[end + 4 :]


def corner_colours(image: Image.Image) -> list[tuple[int, ...]]:
    width, height = image.size
    return [image.getpixel(at) for at in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1))]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "BMP", "GIF", "TIFF", "PPM", "TGA"])
def test_formats(format: str, tmp_path: Path) -> None:
    path = tmp_path / "image.dat"
    path.write_bytes(encoded(Image.fromarray(LEFT_RIGHT), format))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        image = decode(source)
        assert (image.mode, image.size) == ("RGB", (16, 8))
        assert np.abs(np.asarray(image).astype(int) - LEFT_RIGHT)[:, [0, -1]].max() < 60
        if isinstance(source, Image.Image):
            source.close()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8], upright[:4, 8:], upright[4:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # How the camera stored it, per the definition of the tag: where row 0 and column 0 lie in the scene.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif))
    assert decode(image).tobytes() == image.tobytes() and decode(image).size == image.size, "turned once"
    assert np.array_equal(np.asarray(image), upright)


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encoded(Image.fromarray(LEFT_RIGHT), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert decode(data).size == (16, 8)


def test_transparency_is_laid_over_white() -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half.putpixel((0, 0), (10, 20, 30, 255))
    for data in (encoded(half, "PNG"), encoded(half.convert("LA"), "PNG"), encoded(half, "WEBP", lossless=True)):
        assert decode(data).getpixel((3, 3)) == (255, 255, 255)
    assert decode(half).getpixel((0, 0)) == (10, 20, 30)
    keyed = encoded(Image.new("RGB", (2, 2), (9, 9, 9)), "PNG", transparency=(9, 9, 9))
    assert decode(keyed).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert decode(encoded(palette, "PNG")).getpixel((0, 0)) == (200, 100, 50)
    assert decode(encoded(palette, "PNG", transparency=b"\xff\x00")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 2048, 4095]], np.uint16), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.uint16), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-100, -40, 100]], np.int32), [0, 76, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[-1, -0.4, 1]], np.float32), [0, 76, 255]),
        (np.array([[np.nan, np.inf, 1]], np.float32), [0, 0, 255]),
    ],
)
def test_deep_samples_are_scaled_not_clipped(values: np.ndarray, expected: list[int]) -> None:
    image = decode(encoded(Image.fromarray(values), "TIFF"))
    assert np.asarray(image)[0].tolist() == [[value] * 3 for value in expected]


def test_cmyk_grey_and_one_bit() -> None:
    assert decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))[0] > 200
    assert decode(encoded(Image.new("L", (2, 2), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)
    assert decode(encoded(Image.new("1", (2, 2), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert decode(data).getpixel((0, 0)) == (255, 0, 0), format


def test_scene_references_are_rendered() -> None:
    assert decode("scenes:val:0:3").size == (96, 96)
    with pytest.raises(ImageError, match="not a scene"):
        decode("scenes:val:0:three")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_refused(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    with pytest.raises(ImageError) as caught:
        decode(data[: len(data) * 2 // 3])
    assert caught.value.reason and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404 Not Found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (png_header(30000, 30000), "pixels"),
        (png_header(15000, 15000), "pixels"),
        (b"P6\n0 4\n255\n", "."),
        (png_header(64, 64), "."),
    ],
)
def test_what_is_not_an_image_is_an_error_of_one_line(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(ImageError, match=reason) as caught:
            decode(source)
        assert "\n" not in caught.value.message
    assert MAX_PIXELS < 15000 * 15000


def test_bombs_are_refused_before_they_burst() -> None:
    tracemalloc.start()
    for data, reason in (
        (png(30000, 30000, (b"IDAT", zlib.compress(bytes(1 << 20)))), "pixels"),
        (png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))), "."),  # 128 MB of text
        (png(8, 8, *[(b"tEXt", b"a\0" + bytes(1 << 20))] * 80), "."),
        (encoded(Image.new("L", (1, 1)), "GIF").replace(b"\1\0\1\0", b"\xff\xff\xff\xff"), "pixels"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6


def test_a_tiff_that_names_itself_as_its_next_page_ends() -> None:
    assert np.array_equal(np.asarray(decode(looping_tiff())), LEFT_RIGHT)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="a pipe or device, not a file"):
        decode(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="a pipe or device"):
        decode("/dev/null")
    with pytest.raises(ImageError, match="names no image"):
        decode("")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.jpg: no such file"):
        decode(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="folder"):
        decode(tmp_path)
    with pytest.raises(ImageError):
        decode("nul\0byte")


def test_resize_is_bicubic_and_squashes() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    pixels = resize(image, (8, 12))
    assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == ((3, 8, 12), np.uint8, True)
    expected = np.asarray(image.resize((12, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels.transpose(1, 2, 0), expected)


def test_common_suffixes_are_known() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"} <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


def photograph(width: int, height: int) -> Image.Image:
    """Noise of several scales, as in a photograph, with a bright top, so that up and down differ."""
    generator = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 60), (16, 20), (64, 7)):
        noise = generator.normal(128 / 3, strength, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    pixels[: height // 2] += 60
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def cut(image: Image.Image, crop: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC, box=crop)).astype(int)


@pytest.mark.parametrize(
    ("crops", "reduction"),
    [
        ([(0, 0, 1203, 803)], 8),
        ([(0, 0, 1203, 803), (100, 50, 900, 460)], 4),  # the smaller crop decides
        ([(100, 50, 500, 250)], 2),
        ([(100, 50, 300, 149)], 1),
    ],
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_crops_of_a_jpeg_are_decoded_no_larger_than_needed(
    crops: list[tuple[float, ...]], reduction: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photograph(1203, 803)
    if orientation == 6:  # the upright image is 1203 x 803
        stored = stored.transpose(Image.Transpose.ROTATE_90)
    data = encoded(stored, "JPEG", quality=90, exif=exif)
    size = (60, 60)
    seen = []
    image, scaled = decode_crops(data, lambda *shape: seen.append(shape) or crops, size)
    full = decode(data)
    assert seen == [(1203, 803)] == [full.size]
    assert image.size == (-(-1203 // reduction), -(-803 // reduction))
    for crop, part in zip(crops, scaled, strict=True):
        assert part[2] - part[0] > 1.48 * 60 and part[3] - part[1] > 1.48 * 60
        difference = np.abs(cut(image, part, size) - cut(full, crop, size))
        assert difference.mean() < (2 if reduction > 1 else 1e-9)


def test_crops_of_other_formats_are_decoded_whole() -> None:
    picture = photograph(400, 300)
    for source in (encoded(picture, "PNG"), picture):
        image, crops = decode_crops(source, lambda width, height: [(0, 0, width, height / 2)], (10, 10))
        assert crops == [(0, 0, 400, 150)] and np.array_equal(np.asarray(image), np.asarray(picture))
    scene, _ = decode_crops("scenes:val:0:3", lambda *size: [(0, 0, *size)], (8, 8))
    assert scene.size == (96, 96)


def test_an_open_jpeg_stays_as_its_owner_has_it() -> None:
    with Image.open(io.BytesIO(encoded(photograph(400, 300), "JPEG"))) as owned:
        image, _ = decode_crops(owned, lambda *size: [(0, 0, *size)], (8, 8))
        assert image.size == owned.size == (400, 300)


def test_crops_of_a_damaged_jpeg_are_an_error_of_one_line() -> None:
    data = encoded(photograph(400, 300), "JPEG")
    for part, reason in ((data[: len(data) // 2], "."), (data[:100], "."), (b"", "empty")):
        with pytest.raises(ImageError, match=reason) as caught:
            decode_crops(part, lambda *size: [(0, 0, *size)], (100, 100))
        assert "\n" not in caught.value.message


# --- fast decoding -----------------------------------------------------------------------------------------------


def settings() -> tuple[Processor, list[Processor]]:
    exact = Processor(CaptionTokenizer.train(["a dog"], 50), (64, 64), 25)
    return exact, [exact.fast(), exact.fast("torch")]


@pytest.mark.parametrize(
    ("size", "reduction"), [((1203, 803), 4), ((1600, 1100), 8), ((300, 260), 2), ((255, 400), 1), ((60, 40), 1)]
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_large_jpeg_is_read_at_twice_the_size_or_more(
    size: tuple[int, int], reduction: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = photograph(*size)
    stored = picture.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else picture
    data = encoded(stored, "JPEG", quality=90, exif=exif)
    reduced = decode(data, (128, 128))
    assert reduced.size == (-(-size[0] // reduction), -(-size[1] // reduction))
    exact, others = settings()
    expected = exact.image(data).astype(int)
    assert np.array_equal(expected, resize(decode(data), (64, 64)))
    for processor in others:
        difference = np.abs(processor.image(data) - expected)
        assert difference.max() <= (12 if reduction > 1 else 1)  # at the hard edge
        assert difference.mean() < (1.2 if reduction > 1 else 0.2)  # a coarse size; the benchmark has the real one


@pytest.mark.parametrize("size", [(640, 480), (65, 49), (64, 48), (64, 900), (70, 33), (1, 1), (3, 500)])
def test_torch_and_pillow_agree_within_one_grey_level(size: tuple[int, int]) -> None:
    pixels = np.zeros((2, 3, 48, 64), np.uint8)
    for picture in (photograph(*size), photograph(*size).rotate(180)):
        for row, resizer in zip(pixels, ("pillow", "torch"), strict=True):
            resize_into(picture, row, resizer)
        assert np.abs(pixels[0].astype(int) - pixels[1]).max() <= 1
        assert np.array_equal(pixels[0], resize(picture, (48, 64)))


def test_odd_modes_take_the_same_way() -> None:
    exact, others = settings()
    picture = photograph(400, 300)
    clear = picture.copy()
    clear.putalpha(Image.linear_gradient("L").resize((400, 300)))
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    cases = [encoded(clear, "PNG"), encoded(deep, "PNG"), encoded(picture.convert("P"), "PNG")]
    cases += [encoded(picture.convert(mode), "JPEG", quality=95) for mode in ("CMYK", "L")]
    cases += [encoded(picture, format, quality=95) for format in ("WEBP", "AVIF", "GIF")]
    for data in cases:
        expected = exact.image(data).astype(int)
        for processor in others:
            difference = np.abs(processor.image(data) - expected)
            assert difference.max() <= (6 if data.startswith(b"\xff\xd8") else 1)


def test_the_record_says_how_pixels_were_made_and_the_model_stays_the_same() -> None:
    exact, others = settings()
    assert [processor.decoding()["resizer"] for processor in (exact, *others)] == ["pillow", "pillow", "torch"]
    assert exact.decoding()["jpeg"] == "every pixel" != others[0].decoding()["jpeg"]
    assert all(processor.settings() == exact.settings() for processor in others)


def test_a_batch_is_its_images() -> None:
    exact, others = settings()
    sources = [encoded(photograph(90 + 7 * n, 80), "PNG") for n in range(3)]
    for processor in (exact, *others):
        batch = processor.images(sources)
        assert (batch.shape, batch.dtype, batch.flags.c_contiguous) == ((3, 3, 64, 64), np.uint8, True)
        assert all(np.array_equal(row, processor.image(source)) for row, source in zip(batch, sources, strict=True))
    assert exact.images([]).shape == (0, 3, 64, 64)
    with pytest.raises(ImageError):
        exact.image_into(b"", batch[0])
    assert np.array_equal(batch[0], others[1].image(sources[0]))


def test_pillow_is_used_without_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from PIL import Image; from tcl.data.processor import Processor\n"
        "from tcl.errors import MissingExtraError\n"
        "processor = Processor(None, (8, 8), 25).fast()\n"
        "print(processor.image(Image.new('RGB', (9, 9), 'red')).sum())\n"
        "del sys.modules['torch']; sys.path[:] = []\n"
        "try: processor.fast('torch')\n"
        "except MissingExtraError as error: print(error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [str(8 * 8 * 255), "pip install '.[train]'"]


def test_only_the_limit_decides_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns from half of it on."""
    content = encoded(Image.new("L", (12, 12)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(content).size == (12, 12)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)
    with pytest.raises(ImageError, match="more than"):
        decode(content)


def test_memory_that_does_not_suffice_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(MemoryError):
        decode(encoded(Image.new("L", (12, 12)), "PNG"))
