"""Exports trained detectors to files that run without this package: from the bytes of pictures to detections."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from ssd.data.augmentation import EvalTransform
from ssd.data.folder import Folder
from ssd.data.picture_formats import SUFFIXES, describe_unreadable
from ssd.data.reading import PictureFile
from ssd.data.shapes import write_shapes
from ssd.detection import Padded, unpad
from ssd.export import onnx, openvino, torch_formats
from ssd.export.program import DetectionProgram, InputDtype, Metadata, as_input, is_among, missing_rows
from ssd.runtime.device import pick_device, place
from ssd.runtime.files import check_writable, naming
from ssd.weights.checkpoint import build_model, levels_of
from ssd.weights.loading import open_weights
from ssd_ext import DetectionOptions

__all__ = ["FORMATS", "DetectionProgram", "Exported", "Format", "Metadata", "export", "is_exported", "load"]

N_CHECKED = 8  # number of pictures whose detections are compared
# Number of the best candidates of a picture with which the detections of a file are compared. Because of rounding, NMS
# in the file may keep one of these candidates where NMS in the network keeps another.
N_CHOICE = 10_000
N_CALIBRATION = 300  # number of pictures; the default of nncf


class Format(NamedTuple):
    """The functions of a file format.

    Attributes:
        summary: what the files are for, in one line.
        suffix: suffix of the files. The part after the last dot determines how a file is loaded.
        save: writes a program and its metadata to a path.
        load: returns the program in a file, a function with the arguments and results of `DetectionProgram`, and the
            metadata.
        modules: packages that the format needs; `pip install 'ssd-ext[<format>]'` installs them.
        quantize: converts a file to int8, and gives it new metadata. The ranges of values are measured on pictures (n,
            3, size, size). None if the format has no int8.

    Examples:
        >>> from ssd.export import FORMATS
        >>> FORMATS["onnx"].suffix, FORMATS["onnx"].modules
        ('.onnx', ('onnx', 'onnxscript', 'onnxruntime'))
        >>> [name for name, format in FORMATS.items() if format.quantize]
        ['openvino']
    """

    summary: str
    suffix: str
    save: Callable[[DetectionProgram, Path, Metadata], None]
    load: Callable[[Path], tuple[Callable[[Tensor], Sequence[Tensor]], Metadata]]
    modules: tuple[str, ...] = ()
    quantize: Callable[[Path, Tensor, Metadata], None] | None = None


#: The formats by the names that `export` and `ssd export --format` take.
FORMATS: dict[str, Format] = {
    "pt2": Format(
        "a graph that torch loads (torch.export)",
        ".pt2",
        torch_formats.save_pt2,
        torch_formats.load,
    ),
    "aoti": Format(
        "compiled by AOTInductor for machines like the one that exports; runs in C++ without Python",
        ".aoti.pt2",
        torch_formats.save_aoti,
        torch_formats.load,
    ),
    "onnx": Format(
        "standard operators only, for ONNX Runtime and other programs that read ONNX",
        ".onnx",
        onnx.save,
        onnx.load,
        ("onnx", "onnxscript", "onnxruntime"),
    ),
    "openvino": Format(
        "for Intel's processors: an .xml and a .bin file; fastest with --int8",
        ".xml",
        openvino.save,
        openvino.load,
        ("onnx", "onnxscript", "openvino", "nncf"),
        openvino.quantize,
    ),
}


class Exported:
    """A loaded file: a function from pictures to padded detections, like `ssd.inference.prediction.predict_padded`.

    Args:
        program: takes images in the dtype of the file; returns boxes, labels, scores and counts.
        metadata: the metadata of the file.

    Attributes:
        input_size: side of the images in pixels.

    Examples:
        >>> import torch
        >>> from ssd import build_network
        >>> from ssd.export import DetectionProgram, Exported, Metadata
        >>> network = build_network("ssdlite", n_classes=3, size=224, width=0.1)
        >>> program = DetectionProgram(network)  # `load` takes it from a file
        >>> exported = Exported(program, Metadata("pt2", ("cat", "dog"), program.options, network.input_size))
        >>> boxes, labels, scores, counts = exported(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
        >>> boxes.shape, exported.metadata.classes
        (torch.Size([1, 200, 4]), ('cat', 'dog'))
    """

    def __init__(self, program: Callable[[Tensor], Sequence[Tensor]], metadata: Metadata) -> None:
        self.program, self.metadata = program, metadata
        self.input_size = metadata.input_size

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Padded:
        """Takes images (B, 3, input_size, input_size) uint8; returns boxes, labels, scores and counts."""
        images = images.to(self.metadata.device, non_blocking=True).contiguous()
        boxes, labels, scores, counts = self.program(as_input(images, self.metadata.input_dtype))
        return boxes, labels, scores, counts


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Tells from the suffix whether a file is an exported detector.

    Args:
        path: the file, which need not exist.

    Returns:
        Whether it ends like the files of one of `FORMATS`, in small or capital letters.

    Examples:
        >>> from ssd.export import is_exported
        >>> is_exported("run/best.onnx"), is_exported("run/best.pt")
        (True, False)
    """
    return _suffix(path) in {_suffix(format.suffix) for format in FORMATS.values()}


def load(path: str | os.PathLike[str]) -> Exported:
    """Loads an exported file. It is a program: load only files from people whom you trust.

    Args:
        path: the file; its suffix says in which of `FORMATS` it is.

    Returns:
        A function from pictures to detections, with the metadata of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by `export`, or cannot run here.
        ImportError: a package that the format needs is not installed.

    Examples:
        >>> import torch
        >>> from ssd import build_network
        >>> from ssd.export import export, load
        >>> from ssd.weights.checkpoint import save_checkpoint
        >>> save_checkpoint("small.pt", build_network("ssd300", n_classes=3, width=0.01), ["cat", "dog"])
        >>> _ = export("small.pt", "small.pt2", check=[])
        >>> detector = load("small.pt2")
        >>> boxes, labels, scores, counts = detector(torch.zeros(2, 3, 300, 300, dtype=torch.uint8))
        >>> boxes.shape, detector.metadata.classes
        (torch.Size([2, 200, 4]), ('cat', 'dog'))
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not Path(path).stat().st_size:
        raise ValueError(f"{path}: the file is empty")
    name = next((n for n, format in FORMATS.items() if _suffix(format.suffix) == _suffix(path)), None)
    if name is None:
        raise ValueError(f"{path}: not an exported file: these end in {', '.join(f.suffix for f in FORMATS.values())}")
    _require(name)
    program, metadata = FORMATS[name].load(Path(path))
    return Exported(program, metadata)


def export(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: str = "pt2",
    options: DetectionOptions = DetectionOptions(),
    *,
    input_dtype: InputDtype = "uint8",
    device: str | None = "cpu",
    check: Sequence[str | os.PathLike[str]] | None = None,
    int8: str | os.PathLike[str] | None = None,
) -> Metadata:
    """Writes a trained detector to a file: one program from the bytes of pictures to detections.

    The file is first written under a temporary name, loaded, and its detections are compared with those of the network.
    If they agree, the file gets its name.

    Args:
        source: the weights, see `ssd.load_weights`.
        path: the file, which must not exist, with the suffix of the format.
        format: a key of `FORMATS`.
        options: options of the detection; they cannot be changed in the file.
        input_dtype: dtype of the images that the file takes: "uint8", or "float32" in 0..1.
        device: device that the program runs on; None: a GPU if there is one.
        check: pictures, or folders with pictures, on which detections are compared; from each folder at most 8 pictures
            are used. By default the data that the checkpoint was trained on, or drawn shapes if this data is not there.
            Empty: nothing is compared.
        int8: folder with pictures like those that the detector will see, such as the training data. The convolutions
            are converted to int8; the ranges of their values are measured on up to 300 of these pictures. The
            comparison is done before this, since int8 changes detections.

    Returns:
        The metadata in the file.

    Raises:
        FileNotFoundError: the weights, a picture or a folder does not exist.
        FileExistsError: the file exists.
        OSError: the file cannot be written, or the weights cannot be downloaded.
        ValueError: the format, the suffix or the weights are not allowed, or the detections differ.
        TypeError: the source is no path.
        ImportError: a package that the format needs is not installed.

    Examples:
        >>> from ssd import build_network
        >>> from ssd.export import export
        >>> from ssd.weights.checkpoint import save_checkpoint
        >>> save_checkpoint("small.pt", build_network("ssd300", n_classes=3, width=0.01), ["cat", "dog"])
        >>> metadata = export("small.pt", "small.pt2")  # compares the detections in pictures of drawn shapes
        >>> metadata.format, metadata.input_size, metadata.classes
        ('pt2', 300, ('cat', 'dog'))
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source must be the path of a checkpoint, got {type(source).__name__}: write a network to a file with "
            "ssd.weights.checkpoint.save_checkpoint"
        )
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if input_dtype not in get_args(InputDtype):
        raise ValueError(f"input_dtype must be one of {', '.join(get_args(InputDtype))}, got {input_dtype!r}")
    form = FORMATS[format]
    if int8 is not None and form.quantize is None:
        raise ValueError(f"int8 is for {', '.join(n for n, f in FORMATS.items() if f.quantize)}, not for {format}")
    _require(format)
    if _suffix(path) != _suffix(form.suffix):
        raise ValueError(f"{path}: a file of the format {format} ends in {_suffix(form.suffix)}")
    if path.exists():
        raise FileExistsError(f"{path}: exists; choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; {path.name} would be written there")
    check_writable(path)

    checkpoint = open_weights(source)
    model = place(build_model(checkpoint, source), pick_device(device)).eval()
    program = DetectionProgram(model, options)
    metadata = Metadata(
        format,
        tuple(checkpoint["classes"]),
        options,
        model.input_size,
        input_dtype,
        model.priors_cxcy.device.type,
        levels=levels_of(checkpoint),
    )
    compared = check is None or len(check) > 0
    places = _trained_on(checkpoint) if check is None else check
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        # read first, so that a picture that cannot be read is an error before the long work
        images = _pictures(places, metadata, Path(folder) / "shapes") if compared else None
        temporary = Path(folder, "export", path.name)
        temporary.parent.mkdir()
        with naming(path):
            form.save(program, temporary, metadata)
        if images is not None:
            _compare(program, load(temporary), images)
        if int8 is not None and form.quantize is not None:
            metadata = replace(metadata, precision="int8")
            calibration = _read(_few(Path(int8), N_CALIBRATION), metadata)
            with naming(path):
                form.quantize(temporary, calibration, metadata)
            load(temporary)
        files = sorted(temporary.parent.iterdir(), key=lambda file: file == temporary)  # `path` last
        if there := [name for file in files if (name := path.parent / file.name).exists()]:
            raise FileExistsError(f"{there[0]}: exists; choose another name")
        for file in files:
            os.replace(file, path.parent / file.name)
    return metadata


def _suffix(path: str | os.PathLike[str]) -> str:
    return "." + os.fspath(path).rpartition(".")[2].lower()


def _require(format: str) -> None:
    if missing := [name for name in FORMATS[format].modules if find_spec(name) is None]:
        raise ImportError(f"{format} needs {', '.join(missing)}: pip install 'ssd-ext[{format}]'")


def _trained_on(checkpoint: dict[str, Any]) -> list[str]:
    """Returns the folders of pictures that a checkpoint was trained on, if they still exist."""
    return [folder for folder in checkpoint.get("settings", {}).get("data", ()) if Path(folder).is_dir()]


def _pictures(places: Sequence[str | os.PathLike[str]], metadata: Metadata, scratch: Path) -> Tensor:
    """Reads pictures of files and folders, or draws some: (n, 3, input_size, input_size) uint8, n at least 2."""
    paths = [file for path in places for file in _few(Path(path))] or _few(write_shapes(scratch, N_CHECKED, 0))
    images = _read(paths, metadata)
    return images if len(images) > 1 else images.repeat(2, 1, 1, 1)


def _read(paths: Sequence[Path], metadata: Metadata) -> Tensor:
    prepare = EvalTransform(metadata.input_size)
    return torch.stack([prepare(PictureFile(path, levels=metadata.levels)) for path in paths])


def _few(path: Path, n: int = N_CHECKED) -> list[Path]:
    if not path.is_dir():
        return [path]
    folder = Folder(path)
    found = [path / name for name in folder.pictures]
    if not found:
        others = describe_unreadable(path / name for name in folder.unreadable)
        raise ValueError("; ".join([f"no pictures ({', '.join(SUFFIXES)}) in {path}", *others]))
    return found[:: -(-len(found) // n)]


def _compare(program: DetectionProgram, exported: Exported, images: Tensor) -> None:
    """Raises ValueError if detections differ, in a batch of one picture or in a batch of all other pictures."""
    options, first = program.options, 0
    # Detects without suppression, to get the candidates of NMS. If two of them overlap and their scores are equal up to
    # rounding, NMS may keep either of them.
    everything = DetectionProgram(program.model, options._replace(max_overlap=1.0, top_k=max(options.top_k, N_CHOICE)))
    for batch in images.split([1, len(images) - 1]):
        with torch.no_grad():
            here = batch.to(program.mean.device)
            expected, choices = unpad(program(here)), unpad(everything(here))
        found = unpad(exported(batch))
        for i, (ours, its, all_of) in enumerate(zip(expected, found, choices, strict=True), first):
            genuine = is_among(its, all_of).any(dim=1)
            ends_right = len(genuine) > 0 and bool(genuine[-1])
            missing = missing_rows(ours, its, options, genuine, ends_right=ends_right)
            extra = missing_rows(its, ours, options, genuine[:, None])
            if missing or extra or len(ours[1]) != len(its[1]):
                raise ValueError(
                    f"the exported program differs from the network: in picture {i + 1} of {len(images)} it detects "
                    f"{len(its[1])} objects, and the network {len(ours[1])}; {len(missing)} of these are missing, and "
                    f"{len(extra)} are new. Rounding can do this if many scores are nearly equal, as those of a "
                    "network that has learnt little: a higher --min-score (min_score) leaves fewer of them. "
                    "--no-check (check=()) exports without this comparison"
                )
        first += len(batch)
