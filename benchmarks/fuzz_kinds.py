"""The kinds of file that fuzz.py breaks, and how.

Each has whole files to begin with, a way to put one where our reader finds it, and that reader.

A seed of a kind that lies in several files is one of them; `write` puts the others beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segdistill.types import UserError

SECRET = "Secret^Patient"
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 30), dtype=np.uint8)
RGB = RNG.integers(0, 256, (24, 30, 3), dtype=np.uint8)
NUMBERS = (0, 1, 2, -1, 127, 255, 32767, 65535, 2**24, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1)
# fmt: off
WORDS = (
    "\0", "\n", '"', "'", ",", ";", "#", ": ", "- ", "? ", "[", "{", "]", "}", "*a", "&a ", "<<: ", "---", "\t",
    "%YAML 9",
    "!!python/object/apply:os.system [echo ran]", "!!int ", "!!binary ", "!!timestamp ", "12:30:45", "2001-13-45",
    "NaN", ".inf", "-1", "1e999", "1_0", "0x1F", "0o17", "true", "null", "99999999999999999999", "../../x", "C:\\x",
    "/etc/passwd", "\xe4\ud7ff", "\u202e", "[" * 16, "{" * 16, "[" * 9999, "</x>",
    "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>",
)
# fmt: on


class Kind(NamedTuple):
    """A kind of file."""

    seeds: Callable[[Path], list[bytes]]  # whole files; the folder is for what must be written to be made
    write: Callable[[bytes, Path], Path]  # (content, folder) -> what `read` is given
    read: Callable[[Path], Any]  # raises UserError for what it refuses
    text: bool = False
    mend: Callable[[bytes], bytes] = bytes  # checksums made right again


def broken(kind: str, seeds: list[bytes], seed: int, number: int) -> bytes:
    """The `number`-th broken file: one to three changes to one of the seeds."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
    content = bytearray(seeds[int(rng.integers(len(seeds)))])
    changes = [_flip, _flip, _cut, _splice, _length, *[_word, _word, _word] * KINDS[kind].text]
    for _ in range(int(rng.integers(1, 4))):
        content = changes[int(rng.integers(len(changes)))](content, seeds, rng)
    return KINDS[kind].mend(bytes(content)) if rng.random() < 0.5 else bytes(content)


def _place(content: bytearray, rng: np.random.Generator) -> int:
    """Anywhere, or, as often, in the first 400 bytes or the last, where headers and tables are."""
    size, which = len(content), rng.random()
    near = int(rng.integers(min(400, size) or 1))
    return int(rng.integers(size or 1)) if which < 0.4 else near if which < 0.85 else max(0, size - 1 - near)


def _flip(content: bytearray, seeds: list[bytes], rng: np.random.Generator) -> bytearray:
    for _ in range(int(rng.integers(1, 9)) if content else 0):
        content[_place(content, rng)] = int(rng.integers(256))
    return content


def _cut(content: bytearray, seeds: list[bytes], rng: np.random.Generator) -> bytearray:
    return content[: int(rng.integers(len(content) + 1))]


def _splice(content: bytearray, seeds: list[bytes], rng: np.random.Generator) -> bytearray:
    """A piece of a whole file, put in or over."""
    other = seeds[int(rng.integers(len(seeds)))]
    start, here = int(rng.integers(len(other))), _place(content, rng)
    piece = other[start : start + int(rng.integers(1, 200))]
    return content[:here] + piece + content[here + (len(piece) if rng.random() < 0.5 else 0) :]


def _length(content: bytearray, seeds: list[bytes], rng: np.random.Generator) -> bytearray:
    """A number of 1, 2, 4 or 8 bytes, in either order."""
    bytes_, here = int(rng.choice([1, 2, 4, 8])), _place(content, rng)
    number = NUMBERS[int(rng.integers(len(NUMBERS)))] % 2 ** (8 * bytes_)
    content[here : here + bytes_] = number.to_bytes(bytes_, "little" if rng.random() < 0.5 else "big")
    return content


def _word(content: bytearray, seeds: list[bytes], rng: np.random.Generator) -> bytearray:
    """What means something in a table, YAML, JSON or XML, put in or over a word or number."""
    word = WORDS[int(rng.integers(len(WORDS)))].encode("utf-8", "surrogatepass")
    places = [match.span() for match in re.finditer(rb"[\w.-]+", content)] or [(0, 0)]
    start, end = places[int(rng.integers(len(places)))]
    return content[:start] + word + content[end if rng.random() < 0.7 else start :]


# --- images and volumes ---------------------------------------------------------------------------------------------


def _encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _png(folder: Path) -> list[bytes]:
    palette = Image.fromarray(GREY % 4)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return [
        _encoded(Image.fromarray(RGB), "PNG", exif=_turned()),
        _encoded(Image.fromarray(GREY.astype(np.uint16) * 200), "PNG"),
        _encoded(palette, "PNG", transparency=b"\0\x80\xff"),
        _encoded(Image.fromarray(np.dstack([RGB, GREY])), "PNG"),
        _encoded(Image.fromarray(GREY > 99), "PNG"),
    ]


def _png_sums(content: bytes) -> bytes:
    """Right sums of the chunks, as far as they can be told."""
    made, at = bytearray(content), 8
    while at + 12 <= len(made):
        length = struct.unpack(">I", made[at : at + 4])[0]
        end = at + 8 + length
        if end + 4 > len(made):
            break
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[at + 4 : end]))
        at = end + 4
    return bytes(made)


def _jpeg(folder: Path) -> list[bytes]:
    return [
        _encoded(Image.fromarray(RGB), "JPEG", exif=_turned()),
        _encoded(Image.fromarray(RGB), "JPEG", progressive=True),
        _encoded(Image.fromarray(GREY), "JPEG"),
        _encoded(Image.fromarray(np.dstack([RGB, GREY]), "CMYK"), "JPEG"),
    ]


def _tiff(folder: Path) -> list[bytes]:
    image = Image.fromarray(RGB)
    return [
        _encoded(image, "TIFF"),
        _encoded(image, "TIFF", big_tiff=True),
        *(_encoded(image, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        _encoded(Image.fromarray(GREY > 99), "TIFF", compression="group4"),
        _encoded(Image.fromarray(GREY.astype(np.uint16) * 200), "TIFF"),
        _encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    ]


def _bmp(folder: Path) -> list[bytes]:
    return [_encoded(Image.fromarray(array), "BMP") for array in (RGB, GREY, GREY > 99)]


def _nifti(folder: Path) -> list[bytes]:
    import nibabel

    voxels = RNG.integers(0, 900, (9, 7, 5)).astype(np.int16)
    scaled = nibabel.Nifti1Image(voxels, np.diag([1, 1, 3, 1]))
    scaled.header.set_slope_inter(0.5, -3)
    plain = nibabel.Nifti1Image(voxels.astype(np.float32), np.diag([-1, 1, 3, 1]))
    return [scaled.to_bytes(), plain.to_bytes(), nibabel.Nifti2Image(voxels, np.eye(4)).to_bytes()]


def _nifti_gz(folder: Path) -> list[bytes]:
    import gzip

    return [gzip.compress(content, mtime=0) for content in _nifti(folder)]


def _hdf5(folder: Path) -> list[bytes]:
    import h5py

    made = []
    image, label = RNG.random((3, 20, 24)), RNG.integers(0, 4, (3, 20, 24)).astype(np.uint8)
    for options in ({}, {"compression": "gzip"}, {"chunks": (1, 20, 24), "shuffle": True, "fletcher32": True}):
        with h5py.File(folder / "seed.h5", "w") as file:
            file.create_dataset("image", data=image.astype(np.float32), **options)
            file.create_dataset("label", data=label, **options)
        made.append((folder / "seed.h5").read_bytes())
    return made


def _dicom_of(pixels: np.ndarray, syntax: str = "", frames: list[bytes] | None = None, **elements: Any) -> bytes:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4.5"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientComments = SECRET, SECRET, SECRET
    data.SeriesInstanceUID, data.Modality = "1.2.3.4", "MR"
    data.PixelSpacing, data.ImageOrientationPatient = [0.5, 0.7], [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient, data.SliceThickness = [1, 2, 3], 2
    data.Rows, data.Columns = pixels.shape[-2:] if "SamplesPerPixel" not in elements else pixels.shape[:2]
    if pixels.ndim == 3 and "SamplesPerPixel" not in elements:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = pixels.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits, bits - 1, 0
    data.add_new("PixelData", "OB" if bits == 8 else "OW", pixels.tobytes())
    for name, value in elements.items():
        setattr(data, name, value)
    if frames:
        data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate(frames), syntax
        data["PixelData"].VR = "OB"
    elif syntax:
        data.compress(syntax)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _dicom(folder: Path) -> list[bytes]:
    from pydicom import uid

    wide, two = GREY.astype(np.uint16) * 9, np.stack([GREY, GREY[::-1]])
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    jpeg = _encoded(Image.fromarray(GREY), "JPEG")
    jpeg2000 = _encoded(Image.fromarray(GREY), "JPEG2000", no_jp2=True, num_resolutions=1)
    return [
        _dicom_of(wide, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=700, WindowWidth=900),
        _dicom_of(two, WindowCenter=128, WindowWidth=256),
        _dicom_of(RGB, **colour),
        _dicom_of(two, uid.RLELossless),
        _dicom_of(wide, uid.JPEGLSLossless),
        _dicom_of(GREY, uid.JPEGBaseline8Bit, [jpeg]),
        _dicom_of(GREY, uid.JPEG2000Lossless, [jpeg2000]),
    ]


def _named(name: str) -> Callable[[bytes, Path], Path]:
    def write(content: bytes, folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _read_picture(path: Path) -> None:
    """As image and as mask, with what stands in its header; all of them, whichever of them is refused."""
    from segdistill import formats

    refused = None
    for read in (formats.layout, formats.read_volume, formats.read_mask_volume):
        try:
            read(path)
        except UserError as error:
            refused = error
    if refused:
        raise refused


def _read_dicom(path: Path) -> None:
    from segdistill import formats
    from segdistill.formats.dicom import burned_in

    def read_seg(path: Path) -> None:
        formats.read_seg(path, formats.Series((path,), (1, 1, 1), ""))

    for read in (burned_in, lambda path: formats.find_series([path]), formats.series_of, read_seg):
        with contextlib.suppress(UserError):
            read(path)
    _read_picture(path)


# --- tables and settings --------------------------------------------------------------------------------------------


def _manifest(folder: Path) -> list[bytes]:
    return [
        b"image,mask,split,patient,modality,volume,slice,spacing\na.png,m.png,train,p1,mr,v,1,0.5x0.7\n"
        b"b.png,,val,p2,mr,v,2,0.5 0.7\nc.png,m2.png,test,,,,,\n",
        "image;mask\n".encode("utf-16") + b"\n",
        '\ufeffImage, Mask\n"a.png","m.png"\nb.png,\n'.encode(),
    ]


def _write_manifest(content: bytes, folder: Path) -> Path:
    for name in ("a.png", "b.png", "c.png", "m.png", "m2.png"):
        if not (folder / name).exists():
            Image.fromarray(GREY).save(folder / name)
    return _named("list.csv")(content, folder)


def _read_manifest(path: Path) -> None:
    from segdistill.data.manifest import load_manifest

    load_manifest(path)


def _config(folder: Path) -> list[bytes]:
    import yaml

    from segdistill.api.options import TrainOptions
    from segdistill.api.runs import config_text
    from segdistill.methods import METHODS

    texts = [config_text([Path("data")], TrainOptions(method=name), METHODS[name].Config()) for name in METHODS]
    short = {"method": "knowsam", "size": "64x96", "knowsam": {"teacher": "tiny"}, "labelled": "10%"}
    return [*(text.encode() for text in texts), yaml.safe_dump(short).encode()]


def _write_config(content: bytes, folder: Path) -> Path:
    return _named("config.yaml")(content, folder)


def _read_config(path: Path) -> None:
    """As settings of a new run, by the command line; nothing is trained."""
    from segdistill import cli
    from segdistill.api import train
    from segdistill.api.options import check_options

    train.train = lambda data, out, options, config: check_options(options)
    train.resume = lambda run: None
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main(["train", "data", "--config", str(path)])
    if code:
        raise UserError(said.getvalue().rstrip("\n"))


def _open_cache(folder: Path) -> Path:
    """The only file `images.npy` of a cache, made or made anew where it is damaged."""
    from segdistill.data.cache import open_cache
    from segdistill.data.manifest import load_manifest

    rows = load_manifest(_write_manifest(b"image\na.png\nb.png\n", folder)).rows
    open_cache(rows, None, size=(32, 32), fit="squash", folder=folder / "cache", threads=1)
    return next(folder.glob("cache/*/images.npy"))


def _cache(folder: Path) -> list[bytes]:
    return [_open_cache(folder).read_bytes()]


def _write_cache(content: bytes, folder: Path) -> Path:
    _open_cache(folder).write_bytes(content)
    return folder


def _read_run(path: Path) -> None:
    """As the settings of a run to be resumed."""
    from segdistill.api.runs import read_config

    read_config(path.parent)


# --- weights and students -------------------------------------------------------------------------------------------


def _student(folder: Path) -> Path:
    """A small student on disk."""
    import torch

    from segdistill.deploy.artefact import save_student
    from segdistill.deploy.card import Card
    from segdistill.models import students

    class Micro(torch.nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.head = torch.nn.Conv2d(3, classes, 3, padding=1)

        def forward(self, image: torch.Tensor, modality: torch.Tensor | None = None) -> torch.Tensor:
            return self.head(image)

    students.STUDENTS["micro"] = Micro
    colours, classes = ((0, 0, 0), (230, 60, 40)), ("background", "polyp")
    card = Card("micro", {"classes": 2}, "supervised", classes, colours, (32, 48), "none")
    if not folder.exists():
        torch.manual_seed(0)
        save_student(folder, students.build_student("micro", classes=2), card)
    return folder


def _weights_seed(folder: Path) -> list[bytes]:
    return [(_student(folder / "student") / "student.safetensors").read_bytes()]


def _card_seed(folder: Path) -> list[bytes]:
    return [(_student(folder / "student") / "student.json").read_bytes()]


def _write_weights(content: bytes, folder: Path) -> Path:
    """With the right hash, so that the file itself is read."""
    student = _student(folder / "student")
    card = json.loads((student / "student.json").read_text(encoding="utf-8"))
    card["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (student / "student.json").write_text(json.dumps(card), encoding="utf-8")
    (student / "student.safetensors").write_bytes(content)
    return student


def _write_card(content: bytes, folder: Path) -> Path:
    student = _student(folder / "student")
    (student / "student.json").write_bytes(content)
    return student


def _read_student(path: Path) -> None:
    """By the predictor, on an image."""
    from segdistill.deploy.predictor import open_predictor

    open_predictor(path, threads=1).predict(RGB)


def _pth(folder: Path) -> list[bytes]:
    import torch

    state = {"module.a": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(5, dtype=torch.int64)}
    made = []
    for new in (True, False):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=new)
        made.append(file.getvalue())
    return made


def _rezipped(content: bytes) -> bytes:
    """Right sums of what lies in a zip file; a file that is none stays."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as old:
            for entry in old.infolist():
                entry.CRC = 0
            made = io.BytesIO()
            with zipfile.ZipFile(made, "w") as new:
                for entry in old.infolist():
                    start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", content, entry.header_offset + 26))
                    new.writestr(entry.filename, content[start : start + min(entry.file_size, len(content))])
            return made.getvalue()
    except Exception:
        return content


def _read_foreign(path: Path) -> None:
    from segdistill.models.weights import read_weights

    read_weights(path)


def _onnx(folder: Path) -> list[bytes]:
    from segdistill.deploy.export import export_onnx

    export_onnx(_student(folder / "student"), folder / "seed.onnx")
    return [(folder / "seed.onnx").read_bytes()]


def _xml(folder: Path) -> list[bytes]:
    return [_openvino(folder).read_bytes()]


def _bin(folder: Path) -> list[bytes]:
    return [_openvino(folder).with_suffix(".bin").read_bytes()]


def _openvino(folder: Path) -> Path:
    from segdistill.deploy.openvino_file import write_openvino

    path = folder / "seed.xml"
    if not path.exists():
        _onnx(folder)
        card = (_student(folder / "student") / "student.json").read_text(encoding="utf-8")
        write_openvino(folder / "seed.onnx", path, {"card": card, "precision": "fp32"}, half=False)
    return path


def _write_xml(content: bytes, folder: Path) -> Path:
    """Beside the .bin of a whole one."""
    whole = folder.parent / "seed.bin"
    (folder / "student.bin").write_bytes(whole.read_bytes())
    return _named("student.xml")(content, folder)


def _write_bin(content: bytes, folder: Path) -> Path:
    """With the right hash in the .xml, so that the file itself is read."""
    whole = folder.parent / "seed"
    was = hashlib.sha256(whole.with_suffix(".bin").read_bytes()).hexdigest()
    text = whole.with_suffix(".xml").read_text(encoding="utf-8")
    (folder / "student.xml").write_text(text.replace(was, hashlib.sha256(content).hexdigest()), encoding="utf-8")
    (folder / "student.bin").write_bytes(content)
    return folder / "student.xml"


KINDS = {
    "png": Kind(_png, _named("a.png"), _read_picture, mend=_png_sums),
    "jpeg": Kind(_jpeg, _named("a.jpg"), _read_picture),
    "tiff": Kind(_tiff, _named("a.tif"), _read_picture),
    "bmp": Kind(_bmp, _named("a.bmp"), _read_picture),
    "nifti": Kind(_nifti, _named("a.nii"), _read_picture),
    "nifti, gzip": Kind(_nifti_gz, _named("a.nii.gz"), _read_picture),
    "hdf5": Kind(_hdf5, _named("a.h5"), _read_picture),
    "dicom": Kind(_dicom, _named("a.dcm"), _read_dicom),
    "manifest": Kind(_manifest, _write_manifest, _read_manifest, text=True),
    "cache, .npy": Kind(_cache, _write_cache, _open_cache),
    "settings": Kind(_config, _write_config, _read_config, text=True),
    "settings of a run": Kind(_config, _write_config, _read_run, text=True),
    "weights, .pth": Kind(_pth, _named("a.pth"), _read_foreign, mend=_rezipped),
    "weights, .safetensors": Kind(_weights_seed, _named("a.safetensors"), _read_foreign),
    "student, weights": Kind(_weights_seed, _write_weights, _read_student),
    "student, card": Kind(_card_seed, _write_card, _read_student, text=True),
    "student, .onnx": Kind(_onnx, _named("a.onnx"), _read_student),
    "student, .xml": Kind(_xml, _write_xml, _read_student, text=True),
    "student, .bin": Kind(_bin, _write_bin, _read_student),
}
