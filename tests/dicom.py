"""DICOM files for tests, written by pydicom."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, UltrasoundImageStorage, generate_uid


def write_dicom(path: Path, pixels: np.ndarray, stored: int = 8, jpeg: bool = False, **tags) -> Path:
    """Write pixels, (rows, columns) or (frames, rows, columns), with so many bits stored; tags by their keywords."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UltrasoundImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    data.PatientName, data.PatientID, data.PatientBirthDate = "Doe^Jane", "patient-7", "19700102"
    data.InstitutionName, data.BurnedInAnnotation = "St. Secret", "YES"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = 8 if stored <= 8 else 16
    data.BitsStored, data.HighBit = stored, stored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    for name, value in tags.items():
        setattr(data, name, value)
    if jpeg:
        data.PixelData = encapsulate([_jpeg(frame) for frame in pixels.reshape(-1, *pixels.shape[-2:])])
    else:
        data.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def _jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
