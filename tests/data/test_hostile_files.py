"""Files by somebody who means harm, or damaged: each loads, or is refused by one of our errors, and nothing else is
opened or started meanwhile."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import assert_ours, encoded, frames, mutated, npy, parquet, png, png_chunk, watched

from scoresde.data import load
from scoresde.data.foreign import Unreadable, content, within_memory
from scoresde.data.images import FORMATS, MOST_PIXELS

POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\n(/tmp/pwned) (w) file closefile\nshowpage\n"
)
PRIVATE = "private.png"  # what no data file may make us open


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A picture and an array beside the data, which the data try to reach."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / PRIVATE).write_bytes(encoded("PNG"))
    np.save(folder / "private.npy", np.ones((3, 2)))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def refused(target: Path, *, match: str, **options: Any) -> None:
    """In our words, and without opening or starting anything else."""
    with watched(target if target.is_dir() else target.parent), pytest.raises((ValueError, TypeError)) as caught:
        load(target, **options)
    assert_ours(caught.value)
    assert caught.match(match)


def no_thing_of_pillows() -> dict[str, bytes]:
    """One file of each format that Pillow writes and that is not among ours, and a few that it only reads."""
    from PIL import Image

    found = {"EPS": POSTSCRIPT, "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="private.png"/></svg>'}
    for format in (
        "EPS",
        "TGA",
        "ICO",
        "JPEG2000",
        "PCX",
        "SGI",
        "DIB",
        "ICNS",
        "MSP",
        "XBM",
        "PDF",
        "DDS",
        "AVIF",
    ):
        buffer = io.BytesIO()
        for mode in ("RGB", "L", "1"):
            try:
                Image.new(mode, (16, 16)).save(buffer, format)
                found[format] = buffer.getvalue()
                break
            except (OSError, KeyError, ValueError):
                buffer = io.BytesIO()
    return found


def test_only_the_named_formats_are_opened_whatever_they_are_called(data: Path) -> None:
    found = no_thing_of_pillows()
    assert {"EPS", "TGA", "PCX", "DIB"} <= set(found) and not set(found) & set(FORMATS)
    for picture in found.values():
        for ending in (".png", ".tiff"):
            for other in data.iterdir():
                other.unlink()
            (data / f"cat{ending}").write_bytes(picture)
            refused(data, match="cannot read the image .*cat", mode="RGB")
            path = parquet(data / "set.parquet", image=[{"bytes": picture, "path": "cat.png"}])
            refused(path, match="cannot read the image row 0", mode="RGB")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("ending", [".png", ".jpg", ".gif"])
def test_the_content_says_which_of_the_named_formats_it_is(format: str, ending: str, data: Path) -> None:
    (data / f"a{ending}").write_bytes(encoded(format))
    with watched(data):
        dataset = load(data, mode="RGB")
    assert dataset.event_shape == (3, 5, 7)
    if format not in ("JPEG", "WEBP", "GIF"):  # which lose some
        assert torch.equal(dataset.data, load(parquet(data / "x.parquet", image=[{"bytes": encoded("PNG")}])).data)


def _deep_text() -> bytes:
    return png(5, 4, bytes(24), png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))))


def _icc() -> bytes:
    return png(5, 4, bytes(24), png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))))


def _ifd_loop() -> bytes:
    """A TIFF of which the second directory is the first again."""
    content = bytearray(encoded("TIFF", mode="L"))
    start = struct.unpack("<I", content[4:8])[0]
    entries = struct.unpack("<H", content[start : start + 2])[0]
    content[start + 2 + 12 * entries : start + 6 + 12 * entries] = struct.pack("<I", start)
    return bytes(content)


def _exif_loop() -> bytes:
    """EXIF whose directories of EXIF and GPS are the main one again, and which counts 2**32 - 1 letters."""
    entries = [(0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0x0112, 3, 1, 6), (0x010F, 2, 2**32 - 1, 8)]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", 8)


def _apng(claimed: int) -> bytes:
    return png(5, 4, bytes(24), png_chunk(b"acTL", struct.pack(">II", claimed, 0)))


IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no bytes": (lambda: b"", "it is empty"),
    "text": (lambda: b"no image", "none of PNG"),
    "claims 10^5 x 10^5": (lambda: png(10**5, 10**5), "100000x100000|pixels"),
    "claims 2^31 x 2^31": (lambda: png(2**31 - 1, 2**31 - 1), "pixels"),
    "one row too many": (lambda: png(8192, MOST_PIXELS // 8192 + 1), f"at most {MOST_PIXELS}"),
    "as large as is read, without pixels": (lambda: png(8192, 8192), "a.png"),
    "no width": (lambda: png(0, 4), "a.png"),
    "cut short": (lambda: encoded("PNG", (64, 64))[:-40], "a.png"),
    "cut short in its header": (lambda: encoded("PNG")[:20], "a.png"),
    "JPEG cut short": (lambda: encoded("JPEG", (64, 64))[:-40], "truncated"),
    "GIF of 65535 x 65535": (lambda: b"GIF89a" + b"\xff" * 4 + b"\0\0\0", "a.png"),
    "BMP of 10^9 rows": (
        lambda: b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 10**5, 10**9, 1, 24) + bytes(24),
        "pixels",
    ),
    "PPM of 10^6 x 10^6": (lambda: b"P6 1000000 1000000 255\n", "pixels"),
    "text of 100 MB in a chunk": (_deep_text, "a.png"),
    "a spoilt bit of the pixels": (lambda: _spoilt_pixels(), "a.png"),
    "animated, it says, 2^31 times": (lambda: _apng(2**31 - 1), "frames; pass frames='first'"),
    "16 bits": (lambda: png_of_16_bits(), "16 bits per channel"),
    "PPM of 16 bits": (lambda: b"P6 1 1 65535\n" + bytes(6), "16 bits per channel"),
}


def _spoilt_pixels() -> bytes:
    """Stored without compression, so that the stream stays valid: nothing but the checksums would tell."""
    content = bytearray(encoded("PNG", (20, 20), compress_level=0))
    content[content.index(b"IDAT") + 40] ^= 1
    return bytes(content)


def png_of_16_bits() -> bytes:
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes([0, 1, 2, 3, 4, 5, 6])))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("name", IMAGES)
def test_bad_images_are_refused_in_folders_and_in_parquet(name: str, data: Path) -> None:
    make, match = IMAGES[name]
    content = make()
    (data / "a.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of sizes
        refused(data, match=match)
        (data / "a.png").unlink()
        path = parquet(data / "set.parquet", image=[{"bytes": content}])
        refused(path, match=match.replace("a.png", "row 0"))


@pytest.mark.parametrize("make", [_ifd_loop, _icc, lambda: encoded("JPEG", exif=_exif_loop())])
def test_circles_and_bombs_beside_the_pixels_end(make: Callable[[], bytes], data: Path) -> None:
    (data / "a.png").write_bytes(make())
    with watched(data), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load(data)
        except ValueError as error:
            assert_ours(error)


# -- what is no regular file -------------------------------------------------------------------------------------------


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without FIFOs")
@pytest.mark.parametrize("make", [_fifo, _socket, _device])
def test_what_is_no_regular_file_is_not_read(make: Callable[[Path], None], data: Path) -> None:
    (data / "b.png").write_bytes(encoded("PNG"))
    make(data / "a.png")
    refused(data, match=r"a\.png: it is (a|no regular)", follow_links=True)
    for name in ("x.npy", "x.npz", "x.parquet"):
        make(data / name)
        refused(data / name, match="only folders and regular files")
        with pytest.raises(Unreadable, match="only regular files"):
            content(data / name, most=10)
    (data / "a.png").unlink()
    np.save(data / "good.npy", np.ones((3, 2)) * np.arange(2))
    refused(data / "good.npy", match=r"label .*x\.npy is", label=data / "x.npy")


def test_a_file_that_is_exchanged_while_it_is_opened_is_still_no_fifo(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "a").write_bytes(b"")
    regular, real = os.stat(data / "a"), os.stat
    _fifo(data / "b")
    monkeypatch.setattr(os, "stat", lambda path, **options: regular if path == data / "b" else real(path, **options))
    with pytest.raises(Unreadable, match="a FIFO"):
        content(data / "b", most=10)


def test_a_folder_called_like_an_image_is_a_folder(data: Path) -> None:
    (data / "x.png").mkdir()
    (data / "x.png" / "a.png").write_bytes(encoded("PNG"))
    assert load(data).class_names == ("x.png",)
    for name in ("a.npz", "b.parquet"):
        (data / name).mkdir()
        refused(data / name, match="no images")


def test_sparse_files_are_not_read_whole(data: Path) -> None:
    with open(data / "a.png", "wb") as file:
        file.write(encoded("PNG"))
        file.truncate(2**40)
    refused(data, match=r"1099511627776 bytes")


# -- links -------------------------------------------------------------------------------------------------------------


def test_links_out_of_a_folder_are_refused_unless_they_are_wanted(data: Path, outside: Path) -> None:
    (data / "a.png").write_bytes(encoded("PNG"))
    (data / "cat.png").symlink_to(outside / PRIVATE)
    refused(data, match=r"cat\.png: it is a link out of the folder, to .*private\.png; pass follow_links=True")
    with pytest.warns(UserWarning, match="1 of 2 images"):
        assert len(load(data, skip_bad=True)) == 1
    assert len(load(data, follow_links=True)) == 2
    (data / "cat.png").unlink()
    (data / "a.png").unlink()
    (data / "class").symlink_to(outside)
    refused(data, match="class: it is a link out of the folder")
    with pytest.warns(UserWarning, match=r"private\.npy"):  # which does not end as images do
        assert load(data, follow_links=True).class_names == ("class",)


def test_links_inside_a_folder_and_to_a_folder_are_followed(data: Path, tmp_path: Path) -> None:
    (data / "store").mkdir()
    (data / "store" / "a.png").write_bytes(encoded("PNG"))
    (data / "also").mkdir()
    (data / "also" / "b.png").symlink_to("../store/a.png")
    (tmp_path / "link").symlink_to(data)
    for path in (data, tmp_path / "link"):
        dataset = load(path)
        assert dataset.class_names == ("also", "store") and torch.equal(dataset.data[0], dataset.data[1])


def test_links_in_circles_and_links_to_nothing_are_named(data: Path) -> None:
    (data / "a").mkdir()
    (data / "a" / "x.png").write_bytes(encoded("PNG"))
    (data / "a" / "up").symlink_to(data)
    refused(data, match=r"up: it is the same folder as")
    (data / "a" / "up").unlink()
    (data / "a" / "y.png").symlink_to("nowhere.png")
    refused(data, match=r"y\.png: it cannot be followed: No such file")
    (data / "a" / "y.png").unlink()
    (data / "a" / "y.png").symlink_to("y.png")
    refused(data, match=r"y\.png: it cannot be followed")


# -- parquet -----------------------------------------------------------------------------------------------------------


def test_no_field_of_parquet_is_taken_for_a_path(data: Path, outside: Path) -> None:
    import pyarrow as pa

    target = str(outside / PRIVATE)
    types = (pa.string(), pa.large_string(), pa.list_(pa.uint8()), pa.int64(), pa.dictionary(pa.int32(), pa.string()))
    values: tuple[Any, ...] = (target, target, list(target.encode()), 7, target)
    for kind, value in zip(types, values, strict=True):
        column = pa.array([{"bytes": value}], type=pa.struct([("bytes", kind)]))
        refused(parquet(data / "a.parquet", image=column), match=r"'bytes' of column 'image' .* expected binary")
    for kind in (pa.binary(), pa.large_binary()):
        column = pa.array(
            [{"bytes": target.encode(), "path": target}], type=pa.struct([("bytes", kind), ("path", pa.string())])
        )
        refused(parquet(data / "a.parquet", image=column), match="row 0 .* none of PNG")
        column = pa.array([{"bytes": None, "path": target}], type=pa.struct([("bytes", kind), ("path", pa.string())]))
        refused(parquet(data / "a.parquet", image=column), match="row 0 .* no image bytes")
        refused(parquet(data / "a.parquet", image=column), match="No image can be read", skip_bad=True)
        good = pa.array([{"bytes": encoded("PNG")}], type=pa.struct([("bytes", kind)]))
        assert len(load(parquet(data / "a.parquet", image=good))) == 1


def test_a_null_struct_is_a_missing_image_whatever_lies_below_it(data: Path) -> None:
    import pyarrow as pa

    child = pa.array([encoded("PNG"), encoded("PNG")], type=pa.binary())
    column = pa.StructArray.from_arrays([child], names=["bytes"], mask=pa.array([False, True]))
    refused(parquet(data / "a.parquet", image=column), match="row 1 .* has no image bytes")


def test_a_parquet_file_of_more_rows_than_bytes_is_refused_before_it_is_read(data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = data / "a.parquet"
    rows = 1_000_000
    nothing = pa.StructArray.from_arrays([pa.nulls(rows, pa.binary())], names=["bytes"])
    pq.write_table(pa.table({"image": nothing}), path)
    assert path.stat().st_size < 5000
    refused(path, match=f"tells of {rows} rows", skip_bad=True)


def test_metadata_of_parquet_are_no_more_than_names(data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [{"bytes": encoded("PNG")}] * 2, "label": [0, 1]})
    nests = '{"info":{"features":{"label":{"names":' + "[" * 50_000 + "]" * 50_000 + "}}}}"
    for text in (nests, "[]", "{}", '{"info":{"features":{"label":{"names":[1,{}]}}}}', "\xff", "null"):
        pq.write_table(table.replace_schema_metadata({b"huggingface": text.encode("latin1")}), data / "a.parquet")
        assert load(data / "a.parquet").class_names == ("0", "1")
    many = '{"info":{"features":{"label":{"names":' + str([str(i) for i in range(200_000)]).replace("'", '"') + "}}}}"
    pq.write_table(table.replace_schema_metadata({b"huggingface": many.encode()}), data / "a.parquet")
    refused(data / "a.parquet", match="from 1 to 100000 names, got 200000")


def test_labels_of_parquet_beyond_64_bits_are_named(data: Path) -> None:
    import pyarrow as pa

    unsigned = pa.array([0, 2**64 - 1], type=pa.uint64())
    path = parquet(data / "a.parquet", image=[{"bytes": encoded("PNG")}] * 2, label=unsigned)
    refused(path, match=r"column 'label' .* 2\*\*63 and more")


def test_columns_of_parquet_are_found_in_any_order_and_by_names_with_dots(data: Path) -> None:
    rows = [{"bytes": encoded("PNG")}] * 3
    columns: dict[str, Any] = {"y.z": [0, 1, 1], "other": [5, 5, 5], "image": rows}
    dataset = load(parquet(data / "a.parquet", **columns), label_column="y.z")
    assert dataset.label is not None and dataset.label.tolist() == [0, 1, 1]
    assert "passed over 1: other" in str(dataset)


# -- numpy -------------------------------------------------------------------------------------------------------------

HEADER = "{{'descr': {!r}, 'fortran_order': False, 'shape': {!r}}}"

HEADERS: dict[str, tuple[bytes, str]] = {
    "10^12 numbers": (npy(HEADER.format("<f8", (10**12, 2)), bytes(64)), "its header says shape"),
    "10^30 numbers": (npy(HEADER.format("<f8", (10**30, 2)), bytes(64)), "its header says shape"),
    "fewer than none": (npy(HEADER.format("<f8", (-1, 2)), bytes(64)), "x.npy"),
    "less than it holds": (npy(HEADER.format("<f8", (2, 2)), bytes(64)), "holds 32 bytes more"),
    "nothing": (b"", "x.npy"),
    "no header": (b"\x93NUMPY\x01\x00", "x.npy"),
    "a long literal": (npy(str(list(range(9000)))), "x.npy"),
    "deep brackets": (npy("(" * 9000 + ")" * 9000), "x.npy"),
    "deep signs": (npy("-" * 9500 + "1"), "x.npy"),
    "a call": (npy("__import__('os').system('true')"), "x.npy"),
    "a dict without its keys": (npy("{}"), "x.npy"),
    "an array of objects": (npy(HEADER.format("|O", (2, 2)), b"cos\nsystem\n(S'true'\ntR."), "Python objects"),
    "fields of objects": (npy(HEADER.format([("a", "|O")], (2,)), bytes(64)), "Python objects"),
    "huge items": (npy(HEADER.format("<f8", (2, 2)).replace("'<f8'", "('<f8', (10**9,))"), bytes(64)), "x.npy"),
    "version 3": (npy(HEADER.format("<f8", (2, 2)), bytes(32), version=3), "version"),
    "version 9": (npy(HEADER.format("<f8", (2, 2)), bytes(32), version=9), "x.npy"),
    "a pickle": (b"cos\nsystem\n(S'true'\ntR.", "x.npy"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_numpy_are_not_believed(name: str, data: Path) -> None:
    content, match = HEADERS[name]
    (data / "x.npy").write_bytes(content)
    refused(data / "x.npy", match=match)
    with zipfile.ZipFile(data / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    refused(data / "x.npz", match=match.replace("x.npy", "x.npz"))


KINDS: dict[str, tuple[np.ndarray[Any, Any], str]] = {
    "bool": (np.ones((3, 2), bool), r"bool.*uint8.*levels=2"),
    "complex": (np.ones((3, 2), complex), r"complex128.*two channels"),
    "text": (np.array([["a"], ["b"]]), "<U1"),
    "bytes": (np.array([[b"a"], [b"b"]]), "S1"),
    "records": (np.ones(3, [("a", "f4"), ("b", "f4")]), "one of its fields"),
    "dates": (np.ones((3, 2), "M8[D]"), "datetime64"),
    "above 2**63": (np.full((3, 2), 2**63, np.uint64), r"2\*\*63"),
    "wider than float64": (np.full((3, 2), np.inf, np.longdouble), "NaN or infinite"),
    "no samples": (np.ones((0, 2)), "at least one sample"),
    "no numbers": (np.ones((3, 0)), "at least one sample"),
    "a single number": (np.float64(3.0), r"shape \(\)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_arrays_of_other_things_are_refused(name: str, data: Path) -> None:
    array, match = KINDS[name]
    np.save(data / "x.npy", array)
    np.savez(data / "x.npz", x=array)
    for path in (data / "x.npy", data / "x.npz"):
        refused(path, match=match, **({"levels": 5} if array.dtype == np.uint64 else {}))


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">f8", "<u2", ">i4", "<i8", ">u8", "|u1", "|i1", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_width_and_order_are_the_same_numbers(dtype: str, order: Any, data: Path) -> None:
    array = np.arange(60).reshape(5, 3, 4)
    written = np.asarray(array, dtype=dtype, order=order)
    np.save(data / "x.npy", written)
    np.savez_compressed(data / "x.npz", x=written)
    for path in (data / "x.npy", data / "x.npz"):
        assert torch.equal(load(path, levels=60).data.long(), torch.from_numpy(array))


def test_an_array_of_an_archive_cannot_be_larger_than_its_bytes_allow(data: Path) -> None:
    header = npy(HEADER.format("<f8", (10**10, 2)))
    with zipfile.ZipFile(data / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header)
    content = bytearray((data / "x.npz").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)  # the size that the list of members tells
    (data / "x.npz").write_bytes(content)
    refused(data / "x.npz", match="cannot become the 4294967294")


def test_archives_are_read_only_in_the_ways_that_numpy_writes(data: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, 2)) * np.arange(2))
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(data / "x.npz", "w", method) as archive:
            archive.writestr("x.npy", buffer.getvalue())
        refused(data / "x.npz", match="in a way that NumPy does not write")
    with warnings.catch_warnings(), zipfile.ZipFile(data / "x.npz", "w") as archive:
        warnings.simplefilter("ignore")  # two of a name
        archive.writestr("x.npy", buffer.getvalue())
        archive.writestr("x.npy", buffer.getvalue())
    refused(data / "x.npz", match="x and x")


def test_a_spoilt_number_in_an_archive_is_noticed(data: Path) -> None:
    np.savez(data / "x.npz", x=np.arange(60.0).reshape(6, 10))
    content = bytearray((data / "x.npz").read_bytes())
    content[content.index(np.float64(17.0).tobytes())] ^= 1
    (data / "x.npz").write_bytes(content)
    refused(data / "x.npz", match="CRC")


def test_other_members_of_an_archive_are_not_read_but_named(data: Path) -> None:
    np.savez(data / "x.npz", x=np.arange(6.0).reshape(3, 2), other=np.array([{}]), __allow=np.ones(2))
    with watched(data):
        dataset = load(data / "x.npz")
    assert "array x; passed over 2: other, __allow" in str(dataset)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_allocated(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"the data would take \d+\.\d GiB of memory, and there are"):
        within_memory(2**60, "the data")
    within_memory(2**30, "the data")
    monkeypatch.setattr("scoresde.data.foreign._SMALL", 100)
    monkeypatch.setattr("scoresde.data.foreign._memory", lambda: 200)
    (data / "a.png").write_bytes(encoded("PNG", (8, 8)))  # 192 bytes
    assert len(load(data)) == 1
    (data / "b.png").write_bytes(encoded("PNG", (8, 8)))
    refused(data, match=r"2 images of 8x8 would take")
    np.save(data / "x.npy", np.ones((10, 5)))
    refused(data / "x.npy", match=r"^the array in .*x\.npy would take [^']*smaller samples\.$")


def test_the_memory_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scoresde.data import foreign

    (tmp_path / "memory.max").write_text("5000000000\n")
    monkeypatch.setattr(foreign, "_CGROUPS", (tmp_path / "none", tmp_path / "memory.max"))
    monkeypatch.setattr(os, "sysconf", lambda name: 2**20)
    assert foreign._memory() == 5_000_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert foreign._memory() == 2**40


# -- damage of any kind ------------------------------------------------------------------------------------------------


def seeds(kind: str, folder: Path) -> list[bytes]:
    """Good files, which are then damaged."""
    from PIL import Image

    if kind == "images":
        turned = Image.Exif()
        turned[0x0112] = 6
        made = [encoded(format) for format in FORMATS] + [encoded(format, mode="L") for format in FORMATS]
        made += [encoded("TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
        made += [encoded("JPEG", exif=turned), encoded("JPEG", progressive=True), encoded("PNG", exif=turned)]
        return made + [frames(format) for format in ("GIF", "TIFF", "WEBP", "PNG")]
    x, label, made = np.arange(60.0).reshape(6, 10), np.arange(6), []
    if kind == "arrays":
        for write in (np.savez, np.savez_compressed):
            write(folder / "seed.npz", x=x, label=label)
            made.append((folder / "seed.npz").read_bytes())
        np.save(folder / "seed.npy", x)
        return [*made, (folder / "seed.npy").read_bytes()]
    rows = [{"bytes": encoded("PNG"), "path": "x"}] * 3
    return [parquet(folder / "seed.parquet", image=rows, label=[0, 1, 0]).read_bytes()]


def fuzz(kind: str, count: int, data: Path, seed: int) -> None:
    made, loaded = seeds(kind, data.parent), 0
    names = {"images": "a.png", "arrays": "x.npz", "parquet": "x.parquet"}
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        path = data / names[kind]
        path.write_bytes(mutated(made[i % len(made)], rng))
        options: dict[str, Any] = {"mode": "RGB"} if kind == "images" else {}
        options |= {"frames": "first"} if kind == "images" and rng.random() < 0.5 else {}
        try:
            with watched(data), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, and ours of labels
                load(data if kind == "images" else path, **options)
            loaded += 1
        except (ValueError, TypeError) as error:  # anything else fails the test
            assert_ours(error)
    assert 0 < loaded < count  # else it is no test: damage in the pixels of a format without checksums loads


@pytest.mark.parametrize(("kind", "count"), [("images", 600), ("arrays", 400), ("parquet", 300)])
def test_damaged_files_load_or_are_refused(kind: str, count: int, data: Path) -> None:
    fuzz(kind, count, data, seed=0)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["images", "arrays", "parquet"])
@pytest.mark.parametrize("seed", range(1, 6))
def test_thousands_of_damaged_files_load_or_are_refused(kind: str, data: Path, seed: int) -> None:
    fuzz(kind, 1500, data, seed)


def test_the_watch_sees_what_it_should(data: Path, outside: Path) -> None:
    with pytest.raises(AssertionError, match=r"private\.png"), watched(data):
        (outside / PRIVATE).read_bytes()
    with pytest.raises(AssertionError, match=r"subprocess\.Popen"), watched(data):
        subprocess.run([sys.executable, "--version"], capture_output=True, check=True)
    with watched(outside):
        (outside / PRIVATE).read_bytes()
