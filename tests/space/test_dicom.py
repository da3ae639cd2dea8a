import io
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from space.dicom import DicomFile, is_dicom
from space.errors import InputError
from space.images import load_image
from tests.dicom import write_dicom
from tests.images import drawn_over

RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))


def grey(path, frame=0):
    return np.asarray(DicomFile(path).frame(frame).convert("L")).astype(int)


def test_8_bits_are_the_picture_as_it_is(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    assert np.array_equal(grey(path), RAMP)
    assert DicomFile(path).frame().mode == "RGB"


def test_monochrome1_is_turned_over(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(grey(path), 255 - RAMP.astype(int))


def test_12_bits_are_scaled_by_their_range_and_spare_bits_are_no_picture(tmp_path):
    values = RAMP.astype(np.uint16) * 8
    overlay = values.copy()
    overlay[::7] |= 0xF000  # where old files keep overlays
    assert np.abs(grey(write_dicom(tmp_path / "a.dcm", values, 12)) - RAMP).max() <= 1
    assert np.abs(grey(write_dicom(tmp_path / "b.dcm", overlay, 12)) - RAMP).max() <= 1


def test_signed_values_keep_their_order(tmp_path):
    values = RAMP.astype(np.int16) * 8 - 1000
    assert np.abs(grey(write_dicom(tmp_path / "a.dcm", values, 16)) - RAMP).max() <= 1


def test_slope_and_window_are_applied(tmp_path):
    values = RAMP.astype(np.int16) * 4
    path = write_dicom(
        tmp_path / "a.dcm",
        values,
        16,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=[40, 9],
        WindowWidth=[401, 9],
    )
    wanted = ((values * 2.0 - 1000 - 39.5) / 400 + 0.5).clip(0, 1) * 255
    assert np.abs(grey(path) - wanted).max() <= 1
    assert (grey(path) == 0).any()
    assert (grey(path) == 255).any()


@pytest.mark.parametrize("width", [1, 21])
@pytest.mark.parametrize("function", ["SIGMOID", "LINEAR_EXACT"])
def test_a_window_is_drawn_by_the_function_that_the_file_names(tmp_path, function, width):
    values = RAMP.astype(np.int16) * 4 - 500
    window = {"WindowCenter": 40, "WindowWidth": width, "VOILUTFunction": function}
    path = write_dicom(tmp_path / "a.dcm", values, 16, **window)
    wanted = (apply_windowing(values, dcmread(path)) + 2**15) / (2**16 - 1) * 255
    assert np.abs(grey(path) - wanted).max() <= 1


LADDER = np.arange(4096) * 16  # 16 bits for 12


def look_up(entries, first, bits, kind="<u2", count=None):
    """A VOI LUT with the entries as bytes."""
    table = Dataset()
    table.LUTDescriptor = [len(entries) if count is None else count, first, bits]
    table.add_new("LUTData", "OW", entries.astype(kind).tobytes())
    return {"VOILUTSequence": [table]}


@pytest.mark.parametrize(
    ("pixels", "stored", "entries", "first", "more"),
    [
        (RAMP.astype(np.uint16) * 16, 12, np.arange(4096) // 16, 0, {"bits": 8, "kind": "u1"}),
        (RAMP.astype(np.uint16) * 16, 12, np.arange(4096) // 16, 0, {"bits": 8}),
        (RAMP.astype(np.uint16) * 16, 12, LADDER[:1000], 500, {"bits": 16}),
        (RAMP.astype(np.uint16) * 16, 12, np.arange(4096) // 4 + 900, 0, {"bits": 12}),
        (RAMP.astype(np.int16) * 16 - 2048, 12, LADDER, -2048, {"bits": 16}),
        (RAMP.astype(np.uint16) * 256, 16, np.arange(65536), 0, {"bits": 16, "count": 0}),
        (RAMP.astype(np.uint16) * 256, 16, np.arange(50000), 7, {"bits": 16}),
        (RAMP.astype(np.int16) * 128, 16, np.arange(255) + 1, 3000, {"bits": 8, "kind": "u1"}),
    ],
    ids=["bytes", "8 bits in 16", "short", "its own range", "signed", "65536", "50000", "odd"],
)
def test_a_look_up_table_gives_the_greys_that_it_holds(tmp_path, pixels, stored, entries, first, more):
    path = write_dicom(tmp_path / "a.dcm", pixels, stored, **look_up(entries, first, **more))
    wanted = entries[(pixels.astype(int) - first).clip(0, len(entries) - 1)] * 255 / (2 ** more["bits"] - 1)
    assert np.abs(grey(path) - wanted).max() <= 0.5
    data = dcmread(path)
    data.VOILUTSequence[0]["LUTDescriptor"].VR = "US"  # as many write it for signed pixels too
    data.VOILUTSequence[0].LUTDescriptor = [value % 65536 for value in data.VOILUTSequence[0].LUTDescriptor]
    data.save_as(path)
    assert np.abs(grey(path) - wanted).max() <= 0.5
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    for holder, tag in ((data, "PixelData"), (data.VOILUTSequence[0], "LUTData")):
        holder[tag].value = np.frombuffer(holder[tag].value, "<u2").byteswap().tobytes()
    dcmwrite(path, data)
    assert np.abs(grey(path) - wanted).max() <= 0.5


def test_a_look_up_table_comes_after_the_slope_and_may_begin_below_nought(tmp_path):
    more = look_up(LADDER, -1024 % 65536, 16) | {"RescaleSlope": 1, "RescaleIntercept": -1024}
    path = write_dicom(tmp_path / "a.dcm", RAMP.astype(np.uint16) * 16, 12, **more)
    assert np.abs(grey(path) - RAMP).max() <= 1


def test_without_entries_of_a_look_up_table_the_window_is_taken(tmp_path):
    window = {"WindowCenter": 100, "WindowWidth": 401}  # more than the picture uses
    wanted = grey(write_dicom(tmp_path / "window.dcm", RAMP, **window))
    empty = Dataset()
    empty.LUTDescriptor = [256, 0, 8]
    for sequence in ([], [empty]):
        path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=sequence, **window)
        assert np.array_equal(grey(path), wanted)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("values", "stored", "padding", "more"),
    [
        (RAMP.astype(np.uint16) * 4 + 1000, 16, [65535], {}),
        (RAMP.astype(np.uint16) * 4 + 1000, 12, [0], {}),
        (RAMP.astype(np.uint16) * 4 + 1000, 16, [65535, 65000], {}),
        (RAMP.astype(np.uint16) * 4 + 1000, 16, [65000, 65535], {"RescaleSlope": 2, "RescaleIntercept": -1000}),
        (RAMP.astype(np.uint16) * 4 + 1000, 16, [65535], {"WindowCenter": 1510.5, "WindowWidth": 1021}),
        (RAMP.astype(np.int16) * 4 + 10, 16, [-2000], {}),
        (RAMP // 2 + 100, 8, [255], {}),
    ],
    ids=["above", "below", "down to a limit", "up to a limit", "window", "signed", "8 bits"],
)
def test_padding_is_black_and_leaves_the_greys_of_the_picture_alone(tmp_path, kind, values, stored, padding, more):
    more |= {"PhotometricInterpretation": kind}
    shown = grey(write_dicom(tmp_path / "plain.dcm", values, stored, **more))
    padded, around = values.copy(), np.ones(values.shape, bool)
    around[8:-8] = False
    padded[around] = padding[0]
    padded[:4] = padding[-1]
    more |= dict(zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), padding, strict=False))
    found = grey(write_dicom(tmp_path / "padded.dcm", padded, stored, **more))
    assert (found[around] == 0).all()
    assert np.array_equal(found[~around], shown[~around])


def test_a_picture_of_nothing_but_padding_is_black(tmp_path):
    path, values = tmp_path / "a.dcm", np.full((48, 64), 65535, np.uint16)
    assert not grey(
        write_dicom(path, values, 16, PixelPaddingValue=65535, PhotometricInterpretation="MONOCHROME1")
    ).any()


def test_colours_stay(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = write_dicom(
        tmp_path / "a.dcm",
        RAMP,
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        PhotometricInterpretation="RGB",
    )
    import pydicom

    data = pydicom.dcmread(path)
    data.PixelData = colours.tobytes()
    data.save_as(path)
    assert np.array_equal(np.asarray(DicomFile(path).frame()), colours)


@pytest.mark.parametrize(
    ("kind", "pixels", "count", "scale"),
    [
        ("u1", np.uint8, 256, 1),
        ("<u2", np.uint8, 256, 256),
        ("<u2", np.uint8, 256, 1),
        ("u1", np.uint16, 256, 1),
        ("u1", np.uint16, 300, 1),
        ("<u2", np.uint16, 300, 256),
    ],
    ids=["8 bits", "16 bits", "8 bits in 16", "beyond its end", "300 of 8 bits", "300 of 16 bits"],
)
def test_a_palette_s_colours_are_those_that_it_holds_whatever_a_frame_uses(tmp_path, kind, pixels, count, scale):
    numbers, first = np.arange(count), 3
    tables = np.stack([numbers // 2 + 50, 200 - numbers // 2, numbers // 4 + 9], axis=-1)
    indices = np.stack([RAMP // 8 + 90, RAMP]).astype(pixels) * (1 if pixels == np.uint8 else 2)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables.T, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [count, first, 16 if kind == "<u2" else 8]
        tags[f"{name}PaletteColorLookupTableData"] = (table * scale).astype(kind).tobytes()
    file = DicomFile(write_dicom(tmp_path / "a.dcm", indices, 8 * indices.itemsize, **tags))
    for number, frame in enumerate(indices):
        assert np.array_equal(np.asarray(file.frame(number)), tables[(frame.astype(int) - first).clip(0, count - 1)])


def test_a_palette_in_segments_is_drawn_too(tmp_path):
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    segments = np.array([0, 1, 0, 1, 255, 255 * 257], "<u2").tobytes()  # from 0 up to 65535 in 256 entries
    for name in ("Red", "Green", "Blue"):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"Segmented{name}PaletteColorLookupTableData"] = segments
    assert np.array_equal(grey(write_dicom(tmp_path / "a.dcm", RAMP // 2 + 9, **tags)), RAMP // 2 + 9)


@pytest.mark.parametrize("jpeg", [False, True])
def test_every_frame_can_be_had(tmp_path, jpeg):
    frames = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)])
    path = write_dicom(tmp_path / "a.dcm", frames, jpeg=jpeg)
    assert DicomFile(path).frames == 3
    for number in range(3):
        assert np.abs(grey(path, number) - frames[number]).max() <= 4 * jpeg


@pytest.mark.parametrize(
    ("syntax", "kind"),
    [
        (ImplicitVRLittleEndian, None),
        (RLELossless, None),
        (JPEGExtended12Bit, "JPEG"),
        (JPEG2000Lossless, "JPEG2000"),
        (JPEG2000, "JPEG2000"),
    ],
)
def test_each_of_the_syntaxes_that_are_said_to_open_does(tmp_path, syntax, kind):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    data, buffer = dcmread(path), io.BytesIO()
    if syntax == RLELossless:
        data.compress(syntax)
    data.file_meta.TransferSyntaxUID = syntax
    if kind:
        Image.fromarray(RAMP).save(buffer, kind, quality=95)
        data.PixelData = encapsulate([buffer.getvalue()])
    data.save_as(path)
    assert np.abs(grey(path) - RAMP).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize(("syntax", "kind"), [(JPEGBaseline8Bit, "JPEG"), (JPEG2000Lossless, "JPEG2000")])
def test_a_frame_larger_than_the_header_says_is_refused_before_it_is_decoded(tmp_path, syntax, kind):
    data, frames = dcmread(write_dicom(tmp_path / "a.dcm", np.stack([RAMP, RAMP]))), []
    for pixels in (RAMP, np.random.default_rng(0).integers(0, 256, (300, 400), dtype=np.uint8)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        frames.append(buffer.getvalue())
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([frames[0], frames[1][: len(frames[1]) // 2]])  # half a picture cannot be decoded
    data.save_as(tmp_path / "a.dcm")
    file = DicomFile(tmp_path / "a.dcm")
    assert file.frame(0).size == (64, 48)
    with pytest.raises(InputError, match="has 400 x 300 pixels, expected 64 x 48 as its header says: export it again"):
        file.frame(1)


def test_a_jpeg_frame_that_is_drawn_over_very_often_is_refused(tmp_path):
    data, buffer = dcmread(write_dicom(tmp_path / "a.dcm", RAMP)), io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "JPEG", progressive=True)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = encapsulate([drawn_over(buffer.getvalue(), 500)])
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match="drawn over 506 times"):
        DicomFile(tmp_path / "a.dcm").frame()


def test_an_rle_frame_that_unfolds_to_more_than_the_header_says_is_refused_before_it_does(tmp_path):
    data = dcmread(write_dicom(tmp_path / "a.dcm", RAMP))
    data.file_meta.TransferSyntaxUID = RLELossless
    data.PixelData = encapsulate([struct.pack("<16L", 1, 64, *[0] * 14) + bytes([129, 0]) * (1 << 19)])
    data.save_as(tmp_path / "a.dcm")
    file = DicomFile(tmp_path / "a.dcm")
    tracemalloc.start()
    with pytest.raises(InputError, match="unfolds to more than the 3,072 pixels that its header says: export it again"):
        file.frame()
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_frame_of_16_bits_takes_little_more_memory_than_its_pixels(tmp_path):
    values = np.add.outer(np.arange(400), np.arange(1000)).astype(np.int16) * 20 - 10_000
    file = DicomFile(write_dicom(tmp_path / "a.dcm", values, 12, RescaleSlope=2, WindowCenter=100, WindowWidth=3000))
    file.frame()  # what is imported is not counted
    tracemalloc.start()
    file.frame()
    assert tracemalloc.get_traced_memory()[1] < 8 * values.size
    tracemalloc.stop()


def test_patient_and_burned_in_text_are_told(tmp_path):
    file = DicomFile(write_dicom(tmp_path / "a.dcm", RAMP))
    assert (file.patient, file.burned_in) == ("patient-7", "yes")


def test_one_decoder_reads_it_by_suffix_by_mark_and_from_bytes(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    (tmp_path / "IM0001").write_bytes(path.read_bytes())
    for source in (path, tmp_path / "IM0001", path.read_bytes(), {"path": None, "bytes": path.read_bytes()}):
        assert np.array_equal(np.asarray(load_image(source).convert("L")), RAMP)
    (tmp_path / "text").write_text("no DICOM")
    (tmp_path / "DICOMDIR").write_bytes(path.read_bytes())
    assert not is_dicom(tmp_path / "text")
    assert not is_dicom(tmp_path / "DICOMDIR")


def test_a_deflated_file_is_read_and_one_that_would_take_all_memory_is_refused_before_it_unfolds(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)
    for source in (path, path.read_bytes()):
        assert np.array_equal(grey(source), RAMP)
    data.PixelData = bytes(128 << 20)
    data.save_as(path)
    assert path.stat().st_size < 1 << 18
    for source in (path, path.read_bytes()):
        tracemalloc.start()
        with pytest.raises(InputError, match="unfolds to more than 24 MB, as no picture of its size does"):
            DicomFile(source)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_file_of_very_many_elements_is_refused(tmp_path, syntax, nested):
    data = dcmread(write_dicom(tmp_path / "a.dcm", RAMP))
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(tmp_path / "a.dcm")
    head = (tmp_path / "a.dcm").read_bytes()
    head = head[: 144 + int.from_bytes(head[140:144], "little")]
    body = struct.pack("<HH2sH", 9, 4096, b"SH", 0) * 310_000
    if nested:  # in an item of a sequence without a length
        item = struct.pack("<HHL", 0xFFFE, 0xE000, 2**32 - 1)
        body = struct.pack("<HH2sHL", 9, 4096, b"SQ", 0, 2**32 - 1) + item + body
    if syntax == DeflatedExplicitVRLittleEndian:
        body = zlib.compress(body, wbits=-15)
    with pytest.raises(InputError, match="more than 100,000 elements, as none of a picture does: export it again"):
        DicomFile(head + body)


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    (tmp_path / "half.dcm").write_bytes(path.read_bytes()[:-900])
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    other = write_dicom(tmp_path / "other.dcm", RAMP, jpeg=True)
    other.write_bytes(other.read_bytes().replace(b"1.2.840.10008.1.2.4.50", JPEGLSLossless.encode()))
    newer = write_dicom(tmp_path / "newer.dcm", RAMP, jpeg=True)  # which needs another of pylibjpeg's decoders
    data = dcmread(newer)
    data.file_meta.TransferSyntaxUID = HTJ2KLossless
    data.save_as(newer)
    odd = tmp_path / "odd.dcm"  # BitsAllocated with a byte too many
    odd.write_bytes(path.read_bytes().replace(b"\x28\x00\x00\x01US\x02\x00\x08", b"\x28\x00\x00\x01US\x03\x00\x08\x00"))
    huge = write_dicom(tmp_path / "huge.dcm", RAMP, Rows=30000, Columns=30000)
    for file, message in (
        (tmp_path / "half.dcm", "cannot be decoded"),
        (tmp_path / "text.dcm", "no picture|no DICOM"),
        (newer, "High-Throughput JPEG 2000 .*, which is not read here: export it uncompressed or as JPEG 2000"),
        (odd, "cannot be decoded|no DICOM file that can be read"),
        (other, "JPEG-LS .*, which is not read here: export it uncompressed or as JPEG 2000"),
        (huge, "30000 x 30000 pixels"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            load_image(file)
        assert "\n" not in str(refusal.value)


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match="pip install pydicom"):
        load_image(path)
