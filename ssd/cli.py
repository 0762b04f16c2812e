"""The command line: ssd train | eval | detect | export | convert | demo | info."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from ssd.settings import VARIANCES, Settings, not_negative, positive
from ssd_ext import DetectionOptions, LossOptions

if TYPE_CHECKING:  # `ssd --help` imports none of them
    from ssd import SSD300
    from ssd.data import PictureFile
    from ssd.detector import Detections
    from ssd.export import Exported

DRAWN = DetectionOptions(min_score=0.2)
WEIGHTS = (
    "a checkpoint such as run/best.pt, a file of ssd export, weights of another project (see ssd convert), or coco"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0 when done, 1 if some pictures failed, 2 for wrong input, 130 for Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"ssd {arguments.command}: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssd",
        description="Train, evaluate and run SSD300 object detectors.",
        epilog="Start with `ssd demo`; then `ssd train --help` tells how to train on your own pictures.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_eval(commands)
    _add_detect(commands)
    _add_export(commands)
    _add_convert(commands)
    _add_demo(commands)
    _add_info(commands)
    return parser


def _command(commands, run: Callable, summary: str, description: str | None = None) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    name = run.__name__.removeprefix("_")
    parser = commands.add_parser(name, help=summary, description=description, formatter_class=raw)
    parser.set_defaults(run=run)
    return parser


def _checked(kind: type, *checks: Callable[[Any], None]) -> Callable[[str], Any]:
    """A type of argparse whose errors say what is wrong."""

    def parse(text: str) -> Any:
        value = kind(text)
        try:
            for check in checks:
                check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no such number
    return parse


def _add_fields(parser, options: Any, only: Sequence[str] = (), defaults: dict[str, Any] | None = None) -> None:
    """One flag for each field of `Settings` or of a named tuple of options, from the field's type, default and meaning.

    A flag that is not given is absent from the parsed arguments, so that no value stands for "not given".

    Args:
        parser: a parser or a group of one.
        options: `Settings`, or the named tuple, whose values are the defaults.
        only: these fields; by default all.
        defaults: other defaults to tell of.
    """
    hints = get_type_hints(options if isinstance(options, type) else type(options), include_extras=True)
    for name in only or [n for n in hints if n not in VARIANCES and n != "data"]:
        kind, text, *checks = get_args(hints[name])
        default = (defaults or {}).get(name, getattr(options, name))
        if isinstance(default, LossOptions):
            _add_fields(parser, default)
            continue
        flag = name.replace("_", "-")
        if default is not None and default is not False:
            text += f" (default: {default})"
        settings: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]
        if kind is bool and default is False:
            settings["action"] = "store_true"
        elif kind is bool:
            flag, settings["action"], settings["help"] = f"no-{flag}", "store_false", f"no {text}"
        elif get_origin(kind) is Literal:
            settings["choices"] = get_args(kind)
        elif name == "classes":
            settings |= {"type": _class_names, "help": f"{text}, separated by commas, or a file of one per line"}
        elif get_origin(kind) is tuple:
            settings |= {"nargs": "+", "metavar": "DATA"}
        else:
            settings["type"] = _checked(kind, *checks)
        parser.add_argument(f"--{flag}", **settings)


def _given(arguments: argparse.Namespace, options: type) -> dict[str, Any]:
    """The fields of the options that have a flag on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in get_type_hints(options)}


def _class_names(text: str) -> tuple[str, ...]:
    lines = Path(text).read_text(encoding="utf-8").splitlines() if Path(text).is_file() else text.split(",")
    return tuple(name.strip() for name in lines if name.strip())


def _add_machine_options(
    parser: argparse.ArgumentParser, *, workers: str = "processes that read pictures", bf16: bool = True
) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: a GPU if there is one)")
    default = "(default: one per core, at most 4)"
    group.add_argument("--workers", type=_checked(int, not_negative), help=f"{workers} {default}")
    if bf16:
        _add_fields(group, Settings, only=["bf16", "compile"])


def _add_inference_options(parser: argparse.ArgumentParser, defaults: DetectionOptions) -> None:
    group = parser.add_argument_group("detections")
    pictures = "pictures per forward pass (default: %(default)s)"
    group.add_argument("--batch-size", type=_checked(int, positive), default=8, help=pictures)
    _add_fields(group, defaults)


def _open_weights(
    arguments: argparse.Namespace, defaults: DetectionOptions
) -> tuple[SSD300 | Exported, tuple[str, ...], DetectionOptions]:
    """What detects, its classes, and the options: those on the command line, or those that --weights has fixed."""
    from ssd import load_weights
    from ssd.export import is_exported, load

    given = _given(arguments, DetectionOptions)
    if not is_exported(arguments.weights):
        model, classes = load_weights(arguments.weights, device=arguments.device)
        if _given(arguments, Settings).get("compile"):
            model.compile(dynamic=True)  # once, for a last batch of fewer pictures too
        return model, classes, defaults._replace(**given)
    exported = load(arguments.weights)
    given |= {name: True for name in ("compile",) if name in arguments}
    fixed = exported.metadata.options._asdict() | {"compile": False}
    if arguments.device is not None:
        given["device"], fixed["device"] = arguments.device.partition(":")[0], exported.metadata.device
    for name, value in given.items():
        if value != fixed[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{arguments.weights}: has {name} {fixed[name]}; leave out {flag}, or export it anew")
    return exported, exported.metadata.classes, exported.metadata.options


def _add_train(commands) -> None:
    parser = _command(
        commands,
        _train,
        "train a detector on folders of pictures",
        """Train SSD300 on your pictures and leave last.pt, best.pt and curve.png in the folder --out.

DATA is a folder in Pascal VOC layout, as LabelImg and most tools export it:
  DATA/JPEGImages/*.jpg           the pictures
  DATA/Annotations/*.xml          one file per picture with the boxes and their classes
  DATA/ImageSets/Main/train.txt   optional lists of names: train, val, trainval, test
Without lists a tenth of the pictures is held out for validation. Several folders are trained on together.

examples:
  ssd train my_pictures --out run --weights imagenet        downloads VGG16 weights: best for few pictures
  ssd train my_pictures --out run --batch-norm --lr 1e-2 --schedule onecycle       from scratch, offline
  ssd train VOC2007 VOC2012 --split trainval --val-data VOC2007 --val-split test --out voc
  ssd train --out run --resume                              go on after Ctrl-C, as if never stopped""",
    )
    parser.add_argument("data", nargs="*", metavar="DATA", help="folders in Pascal VOC layout")
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out with its own settings")
    _add_fields(parser.add_argument_group("settings of the run"), Settings)
    _add_machine_options(parser, bf16=False)  # which is a setting of the run


def _train(arguments: argparse.Namespace) -> int:
    from ssd.train import BEST, LAST, train

    loss = _given(arguments, LossOptions)
    given = {name: value for name, value in _given(arguments, Settings).items() if name != "data"}
    if arguments.resume:
        if arguments.data or given or loss:
            extra = ["DATA"] * bool(arguments.data) + [f"--{name.replace('_', '-')}" for name in {**given, **loss}]
            raise ValueError(f"--resume continues with the settings of the run; leave out {', '.join(extra)}")
        settings = None
    elif not arguments.data:
        raise ValueError("name at least one DATA folder (or --resume a run)")
    else:
        settings = Settings(tuple(arguments.data), **given, loss=LossOptions(**loss))
    train(settings, arguments.out, resume=arguments.resume, device=arguments.device, workers=arguments.workers)
    print(f"wrote {Path(arguments.out) / BEST}, {LAST} and curve.png")
    return 0


def _add_eval(commands) -> None:
    from ssd.evaluate import METHODS

    parser = _command(
        commands,
        _eval,
        "mean average precision of a checkpoint, per class",
        """Average precision per class by the rules of Pascal VOC: objects marked as difficult count neither way.

examples:
  ssd eval my_pictures --weights run/best.pt --split test
  ssd eval VOC2007 --weights voc/best.pt --split test --method 11point      the VOC 2007 metric""",
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="folders in Pascal VOC layout")
    parser.add_argument("--weights", required=True, metavar="FILE", help=WEIGHTS)
    parser.add_argument("--split", help="list of ImageSets/Main (default: all pictures)")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="default: %(default)s")
    parser.add_argument("--iou", type=float, default=0.5, help="least IoU of a hit (default: %(default)s)")
    _add_inference_options(parser, DetectionOptions())
    _add_machine_options(parser)


def _eval(arguments: argparse.Namespace) -> int:
    from ssd.data import open_dataset
    from ssd.data.augmentation import EvalTransform
    from ssd.evaluate import evaluate

    model, classes, options = _open_weights(arguments, DetectionOptions())
    dataset = open_dataset(arguments.data, arguments.split, classes, EvalTransform())
    for drop in dataset.dropped:
        print(drop, file=sys.stderr)
    result = evaluate(
        model,
        dataset,
        classes,
        options,
        iou_threshold=arguments.iou,
        method=arguments.method,
        batch_size=arguments.batch_size,
        bf16=getattr(arguments, "bf16", None),
        workers=arguments.workers,
    )
    print(result)
    return 0


def _add_detect(commands) -> None:
    parser = _command(
        commands,
        _detect,
        "find objects in pictures and draw them",
        """Find objects: draws each picture with boxes, names and scores into --out, and writes detections.json there:
COCO's format with "images", "categories" and "annotations" (bbox [x, y, width, height] in pixels, with a score; the
list under "annotations" is what COCO.loadRes takes). A picture that cannot be read is named and left out, the rest is
done, and the exit code is 1. Only drawings and a detections.json of `ssd detect` itself are ever replaced; where
folders are searched, its drawings are passed over.

examples:
  ssd detect photo.jpg --out found               the 80 classes of COCO; downloads 136 MB once
  ssd detect photo.jpg --weights run/best.pt --out found
  ssd detect holiday/ more/ --weights run/best.pt --out found --min-score 0.5""",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, or folders that are searched for them")
    parser.add_argument("--weights", default="coco", metavar="FILE", help=f"{WEIGHTS} (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for pictures and detections.json")
    parser.add_argument("--no-drawings", action="store_true", help="detections.json alone")
    _add_inference_options(parser, DRAWN)
    _add_machine_options(parser, workers="threads that read and draw pictures")


def _detect(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ssd.data.loader import worker_count
    from ssd.detector import Detector
    from ssd.draw import draw_detections, save_png
    from ssd.results import JSON_NAME, coco_results, plan_drawings
    from ssd.threads import in_threads

    out, workers = Path(arguments.out), max(1, worker_count(arguments.workers))
    drawings = plan_drawings(arguments.paths, out, draw=not arguments.no_drawings)
    model, classes, options = _open_weights(arguments, DRAWN)
    detector = Detector(model, classes, options, bf16=getattr(arguments, "bf16", None))
    with tqdm(total=len(drawings), unit="picture", disable=None) as bar, coco_results(out, classes) as results:

        def skip(error: Exception) -> None:
            bar.write(f"skipped: {error}", file=sys.stderr)
            bar.update()

        def draw(found: tuple[PictureFile, Detections]) -> tuple[PictureFile, Detections]:
            picture, detections = found
            target = drawings[picture.path]
            target.parent.mkdir(parents=True, exist_ok=True)
            save_png(draw_detections(picture.pixels(), *detections, classes=classes), target)
            return found

        every = detector.stream(drawings, arguments.batch_size, skip, workers=workers)
        for picture, found in every if arguments.no_drawings else in_threads(draw, every, workers, ahead=workers):
            results.add(picture, found)
            counts = Counter(classes[label - 1] for label in found.labels.tolist())
            names = ", ".join(f"{n} {name}" for name, n in counts.items())
            bar.write(f"{picture.path}: {names or 'nothing found'}")
            bar.update()
    done = results.images.count
    print(f"{done} pictures, {results.annotations.count} objects: {out / JSON_NAME}")
    if done < len(drawings):
        print(f"{len(drawings) - done} of {len(drawings)} pictures could not be read", file=sys.stderr)
        return 1
    return 0


def _add_export(commands) -> None:
    from ssd.export import FORMATS

    parser = _command(
        commands,
        _export,
        "write a detector as one program, for use without this network's code",
        """Write a file that takes the bytes of pictures (B, 3, 300, 300) and gives boxes, labels, scores and counts.
Classes and detection options are inside. Its detections are compared with the network's before it takes its name.
  pt2      a graph that torch loads (torch.export)
  aoti     compiled by AOTInductor for the likes of this machine; runs in C++ without Python
  onnx     standard operators only, for ONNX Runtime and whatever else reads ONNX
  openvino for Intel's processors: an .xml and a .bin; with --int8 the fastest there
ssd detect and ssd eval take these files as --weights (docs/shipping.md).

examples:
  ssd export run/best.pt                                     writes run/best.pt2
  ssd export run/best.pt --format aoti --min-score 0.5""",
    )
    parser.add_argument("source", metavar="WEIGHTS", help="a checkpoint such as run/best.pt, see ssd convert, or coco")
    parser.add_argument("--format", choices=FORMATS, default="pt2", help="default: %(default)s")
    parser.add_argument("--out", metavar="FILE", help="the file, which must not exist (default: named after WEIGHTS)")
    parser.add_argument("--input", choices=("uint8", "float"), default="uint8", help="pictures as bytes or as 0..1")
    parser.add_argument("--device", default="cpu", help="that the file shall run on (default: %(default)s)")
    check = parser.add_mutually_exclusive_group()
    help = "pictures or folders to compare on (default: those trained on, or drawn ones)"
    check.add_argument("--check", nargs="+", metavar="DATA", help=help)
    check.add_argument("--no-check", dest="check", action="store_const", const=(), help="compare nothing")
    help = "8-bit convolutions (openvino), by the ranges they have on pictures of this folder, such as those trained on"
    parser.add_argument("--int8", metavar="DATA", help=help)
    _add_fields(parser.add_argument_group("detections"), DRAWN)


def _export(arguments: argparse.Namespace) -> int:
    from ssd.export import FORMATS, export

    out = arguments.out or str(Path(arguments.source).with_suffix(FORMATS[arguments.format].suffix))
    metadata = export(
        arguments.source,
        out,
        arguments.format,
        DRAWN._replace(**_given(arguments, DetectionOptions)),
        input_dtype="float32" if arguments.input == "float" else "uint8",
        device=arguments.device,
        check=arguments.check,
        int8=arguments.int8,
    )
    print(f"wrote {out}: {len(metadata.classes)} classes: {', '.join(metadata.classes)}")
    return 0


def _add_convert(commands) -> None:
    parser = _command(
        commands,
        _convert,
        "turn the weights of another project into a checkpoint",
        """Write a checkpoint of this project from the weights of another, with their priors, input and class names.
No code from the file is run. IN is one of
  coco                        torchvision's SSD300, trained on COCO (downloads 136 MB once)
  checkpoint_ssd300.pth.tar   of sgrvinod's tutorial: with the pickled model, or its state dict
  ssd300_vgg16_coco-*.pth     a state dict of torchvision's ssd300_vgg16
  ssd300_mAP_77.43_v2.pth     a state dict of amdegroot's ssd.pytorch
  run/last.pt                 a checkpoint of this project: leaves out what only --resume needs
All other commands take these too.

examples:
  ssd convert checkpoint_ssd300.pth.tar voc.pt
  ssd convert ssd_300_VOC0712.pth caffe.pt --bgr        ssd.pytorch's conversion of the original Caffe weights""",
    )
    parser.add_argument("source", metavar="IN", help="the weights")
    parser.add_argument("target", type=Path, metavar="OUT", help="the checkpoint, which must not exist")
    help = "names of the classes, separated by commas, or a file of one per line (default: those of the project)"
    parser.add_argument("--classes", type=_class_names, help=help)
    parser.add_argument("--bgr", action="store_true", help="the network takes blue first, as Caffe's do")


def _convert(arguments: argparse.Namespace) -> int:
    from ssd import load_weights
    from ssd.checkpoint import save_checkpoint

    if arguments.target.exists():
        raise FileExistsError(f"{arguments.target}: exists; choose another name")
    model, classes = load_weights(arguments.source, classes=arguments.classes, bgr=arguments.bgr, device="cpu")
    save_checkpoint(arguments.target, model, classes)
    print(f"wrote {arguments.target}: {len(classes)} classes: {', '.join(classes)}")
    return 0


def _add_demo(commands) -> None:
    from ssd.demo import CPU_WIDTH, SETTINGS

    parser = _command(
        commands,
        _demo,
        "train and test a small detector on drawn shapes, no download",
        """Draws pictures of circles, squares and triangles on busy backgrounds, trains a network on them as `ssd train`
does (a narrow one on a CPU, the full one on a GPU), measures its mAP on pictures it has not seen, and draws what it
finds there beside the truth.""",
    )
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder for everything (default: %(default)s)")
    _add_fields(parser, Settings, ["epochs", "width"], SETTINGS | {"width": f"{CPU_WIDTH} on a CPU, 1 on a GPU"})
    _add_machine_options(parser)


def _demo(arguments: argparse.Namespace) -> int:
    from ssd.demo import demo

    demo(arguments.out, device=arguments.device, workers=arguments.workers, **_given(arguments, Settings))
    return 0


def _add_info(commands) -> None:
    parser = _command(
        commands,
        _info,
        "versions and kernels of this installation, or what a data set holds",
        """Without DATA: versions, and which kernels are compiled for which device. With DATA: its pictures and objects.

examples:
  ssd info my_pictures
  ssd info my_pictures --speed       how many pictures a core prepares, hence how many cores a GPU would need""",
    )
    parser.add_argument("data", nargs="*", metavar="DATA", help="folders in Pascal VOC layout")
    parser.add_argument("--speed", action="store_true", help="measure the reading of DATA, for about 10 seconds")
    _add_fields(parser, Settings, ["augment"])


def _info(arguments: argparse.Namespace) -> int:
    if not arguments.data:
        if arguments.speed:
            raise ValueError("--speed measures the reading of DATA: name at least one folder")
        import ssd_ext

        print(ssd_ext.info())
        return 0
    from ssd.data import AUGMENTATIONS, open_dataset
    from ssd.data.speed import measure_speed

    dataset = open_dataset(arguments.data)
    print(f"{len(dataset)} pictures, {', '.join(f'{n} {name}' for name, n in dataset.counts.items())}")
    print("\n".join(map(str, dataset.dropped)), end="\n" if dataset.dropped else "")
    if arguments.speed:
        print("by the CPU time of one core:")
        print(measure_speed(dataset, AUGMENTATIONS[getattr(arguments, "augment", Settings.augment)]()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
