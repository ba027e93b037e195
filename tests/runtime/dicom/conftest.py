"""DICOM files built here, and what a refusal must look like."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvlm.runtime.dicom.view import DEFAULT_VIEW, View
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import load_image
from numpy.typing import NDArray

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("pylibjpeg", reason="needs the extra dicom")

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

Make = Callable[..., bytes]
Refusal = Callable[..., str]


def build(pixels: NDArray[Any] | None = None, syntax: str = EXPLICIT, **elements: Any) -> bytes:
    """A DICOM file of `pixels` [frames?, rows, columns, samples?]; `elements` by keyword; None takes one out."""
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8) if pixels is None else pixels
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    shape = pixels.shape[:-1] if colour else pixels.shape
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = CT_STORAGE
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    stated = {
        "SOPClassUID": CT_STORAGE,
        "SOPInstanceUID": "1.2.3.4",
        "SeriesInstanceUID": "1.2.3",
        "Modality": "CT",
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "PlanarConfiguration": 0 if colour else None,
        "Rows": shape[-2],
        "Columns": shape[-1],
        "NumberOfFrames": shape[0] if len(shape) == 3 else None,
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": pixels.dtype.itemsize * 8,
        "HighBit": pixels.dtype.itemsize * 8 - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
        **elements,
    }
    for keyword, value in stated.items():
        if value is not None:
            setattr(dataset, keyword, value)
    stream = io.BytesIO()
    dataset["PixelData"].VR = "OW"
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def edited(content: bytes, change: Callable[[Any], None]) -> bytes:
    """The file after `change` of its dataset."""
    dataset = copy.deepcopy(pydicom.dcmread(io.BytesIO(content)))
    change(dataset)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset)
    return stream.getvalue()


@pytest.fixture(scope="session")
def make() -> Make:
    return build


@pytest.fixture(scope="session")
def edit() -> Callable[[bytes, Callable[[Any], None]], bytes]:
    return edited


@pytest.fixture(scope="session")
def refusal() -> Refusal:
    """Call it with an image and a view: the one line with which it is refused."""

    def refuse(source: Any, view: View = DEFAULT_VIEW) -> str:
        with pytest.raises(InputError) as error:
            load_image(source, view)
        message = str(error.value)
        assert message.isprintable()
        assert error.value.exit_code == 2
        return message

    return refuse


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Path]:
    """The path of a file that comes with pydicom; nothing is downloaded."""

    def find(name: str) -> Path:
        path = pydicom.data.get_testdata_file(name, download=False)
        if path is None:
            pytest.skip(f"needs {name}, which this pydicom does not bring")
        return Path(path)

    return find
