"""The command line: ssd train | eval | detect | demo | info."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from ssd.atomic import replacing

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0 when done, 1 if some pictures failed, 2 for wrong input, 130 for Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
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
    _add_demo(commands)
    info = commands.add_parser("info", help="versions, and which kernels are compiled for which device")
    info.set_defaults(run=_info)
    return parser


def _command(commands, name: str, run, summary: str, description: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: a GPU if there is one)")
    group.add_argument("--workers", type=int, help="processes that read pictures (default: one per core, at most 4)")
    group.add_argument(
        "--no-bf16",
        dest="bf16",
        action="store_const",
        const=False,
        help="run the network in float32 (default: bfloat16 autocast where the hardware has it)",
    )


def _add_detection_options(parser: argparse.ArgumentParser, min_score: float) -> None:
    group = parser.add_argument_group("detections")
    group.add_argument("--min-score", type=float, default=min_score, help="least score (default: %(default)s)")
    group.add_argument(
        "--max-overlap", type=float, default=0.45, help="greatest IoU of two boxes of a class (default: %(default)s)"
    )
    group.add_argument("--top-k", type=int, default=200, help="most boxes per picture (default: %(default)s)")


# ------------------------------------------------------------------------------------------------------- train


def _add_train(commands) -> None:
    parser = _command(
        commands,
        "train",
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
    default = {f.name: f.default for f in fields(_settings_class()) if f.default is not MISSING}
    parser.add_argument("data", nargs="*", metavar="DATA", help="folders in Pascal VOC layout")
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out with its own settings")

    data = parser.add_argument_group("data")
    data.add_argument("--split", help="list to train on (default: train, or trainval, if val or test exists)")
    data.add_argument("--val-split", help="list to validate on (default: the partner of the default --split)")
    data.add_argument("--val-data", nargs="+", metavar="DATA", help="folders to validate on (default: those of DATA)")
    data.add_argument(
        "--classes", help="names, separated by commas, or a file of one name per line (default: from DATA)"
    )
    data.add_argument("--flips", action="store_true", help="mirror top to bottom too: pictures without an upright")

    network = parser.add_argument_group("network")
    network.add_argument("--weights", help="imagenet, or a file: VGG16 weights or a checkpoint (default: random)")
    network.add_argument("--batch-norm", action="store_true", help="batch normalisation: needed from scratch")
    network.add_argument("--width", type=float, help="factor on all channels, for small machines")

    steps = parser.add_argument_group("optimisation")
    steps.add_argument("--epochs", type=int, help="passes over the data")
    steps.add_argument("--batch-size", type=int, help="pictures per step")
    steps.add_argument("--lr", type=float, help="learning rate; biases take twice as much")
    steps.add_argument("--momentum", type=float, help="of SGD")
    steps.add_argument("--weight-decay", type=float, help="of SGD")
    steps.add_argument("--schedule", choices=("step", "onecycle", "cosine"), help="course of the learning rate")
    steps.add_argument("--warmup", type=int, help="steps of linear warm-up, at most a tenth of the run")
    steps.add_argument("--clip-grad", type=float, help="largest norm of the gradient, 0: no limit")
    steps.add_argument("--loc-loss", choices=("l1", "smooth_l1"), help="l1: the tutorial's, smooth_l1: the paper's")
    steps.add_argument("--matching", choices=("per_prior", "bipartite"), help="the tutorial's or Caffe's rule")
    steps.add_argument("--min-negatives", type=int, help="least hard negatives per picture: learn from empty ones")
    steps.add_argument("--eval-every", type=int, help="epochs between validations, 0: about ten in a run")
    steps.add_argument("--seed", type=int, help="of weights, order and augmentation")
    _add_machine_options(parser)
    for action in parser._actions:  # one place for the defaults: Settings
        if action.dest in default and action.default is None and default[action.dest] is not None:
            action.help += f" (default: {default[action.dest]})"


def _settings_class():
    from ssd.train import Settings

    return Settings


def _train(arguments: argparse.Namespace) -> int:
    from ssd.train import Settings, train

    given = {
        f.name: getattr(arguments, f.name)
        for f in fields(Settings)
        if f.name != "data" and getattr(arguments, f.name) not in (None, False)
    }
    if arguments.bf16 is False:
        given["bf16"] = False
    if arguments.resume:
        if given or arguments.data:
            extra = ", ".join(["DATA"] * bool(arguments.data) + [f"--{n.replace('_', '-')}" for n in given])
            raise ValueError(f"--resume continues with the settings of the run; leave out {extra}")
        settings = None
    else:
        if not arguments.data:
            raise ValueError("name at least one DATA folder (or --resume a run)")
        if arguments.classes:
            given["classes"] = _class_names(arguments.classes)
        if arguments.val_data:
            given["val_data"] = tuple(arguments.val_data)
        settings = Settings(data=tuple(arguments.data), **given)
    train(settings, arguments.out, resume=arguments.resume, device=arguments.device, workers=arguments.workers)
    print(f"wrote {Path(arguments.out) / 'best.pt'}, last.pt and curve.png")
    return 0


def _class_names(text: str) -> tuple[str, ...]:
    lines = Path(text).read_text(encoding="utf-8").splitlines() if Path(text).is_file() else text.split(",")
    return tuple(name.strip() for name in lines if name.strip())


# -------------------------------------------------------------------------------------------------------- eval


def _add_eval(commands) -> None:
    parser = _command(
        commands,
        "eval",
        _eval,
        "mean average precision of a checkpoint, per class",
        """Average precision per class by the rules of Pascal VOC: objects marked as difficult count neither way.

examples:
  ssd eval my_pictures --weights run/best.pt --split test
  ssd eval VOC2007 --weights voc/best.pt --split test --method 11point      the VOC 2007 metric""",
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="folders in Pascal VOC layout")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint, such as run/best.pt")
    parser.add_argument("--split", help="list of ImageSets/Main (default: all pictures)")
    parser.add_argument("--method", choices=("area", "11point"), default="area", help="default: %(default)s")
    parser.add_argument("--iou", type=float, default=0.5, help="least IoU of a hit (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    _add_detection_options(parser, min_score=0.01)
    _add_machine_options(parser)


def _eval(arguments: argparse.Namespace) -> int:
    from ssd.checkpoint import load_model
    from ssd.data import VOCDataset
    from ssd.evaluate import evaluate
    from ssd.transforms import eval_transform

    model, classes = load_model(arguments.weights, arguments.device)
    dataset = VOCDataset(arguments.data, arguments.split, classes, eval_transform())
    for drop in dataset.dropped:
        print(drop, file=sys.stderr)
    result = evaluate(
        model,
        dataset,
        classes,
        iou_threshold=arguments.iou,
        method=arguments.method,
        min_score=arguments.min_score,
        max_overlap=arguments.max_overlap,
        top_k=arguments.top_k,
        batch_size=arguments.batch_size,
        bf16=arguments.bf16,
        workers=arguments.workers,
    )
    print(result)
    return 0


# ------------------------------------------------------------------------------------------------------ detect


def _add_detect(commands) -> None:
    parser = _command(
        commands,
        "detect",
        _detect,
        "find objects in pictures and draw them",
        """Find objects: draws each picture with boxes, names and scores into --out, and writes detections.json there:
COCO's format with "images", "categories" and "annotations" (bbox [x, y, width, height] in pixels, with a score; the
list under "annotations" is what COCO.loadRes takes). A picture that cannot be read is named and left out, the rest is
done, and the exit code is 1.

examples:
  ssd detect photo.jpg --weights run/best.pt --out found
  ssd detect holiday/ more/ --weights run/best.pt --out found --min-score 0.5""",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, or folders that are searched for them")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint, such as run/best.pt")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for pictures and detections.json")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    _add_detection_options(parser, min_score=0.2)
    _add_machine_options(parser)


def find_pictures(paths: Sequence[str | os.PathLike[str]]) -> list[tuple[Path, Path]]:
    """(picture, its name below the output folder) for every file named and every picture inside a folder named.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there is no picture at all.
    """
    pictures: list[tuple[Path, Path]] = []
    taken: set[Path] = set()
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            found = [(p, p.relative_to(path)) for p in inside]
        elif path.exists():
            found = [(path, Path(path.name))]
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
        for picture, name in found:
            target, n = name.with_suffix(".png"), 1
            while target in taken:  # two folders may hold pictures of one name
                n += 1
                target = name.with_name(f"{name.stem}_{n}.png")
            taken.add(target)
            pictures.append((picture, target))
    if not pictures:
        raise ValueError(f"no pictures ({', '.join(PICTURES)}) in {', '.join(map(str, paths))}")
    return pictures


def _detect(arguments: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from ssd.checkpoint import load_model
    from ssd.data import ImageReadError, read_image
    from ssd.detect import predict
    from ssd.draw import draw_detections, save_png
    from ssd.transforms import eval_transform

    pictures = find_pictures(arguments.paths)
    model, classes = load_model(arguments.weights, arguments.device)
    out, prepare = Path(arguments.out), eval_transform()
    coco = {
        "images": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
        "annotations": [],
    }
    broken = 0
    for start in tqdm(range(0, len(pictures), arguments.batch_size), unit="batch", disable=None):
        batch = []
        for path, name in pictures[start : start + arguments.batch_size]:
            try:
                batch.append((path, name, read_image(path)))
            except (ImageReadError, OSError) as error:
                broken += 1
                tqdm.write(f"skipped: {error}", file=sys.stderr)
        if not batch:
            continue
        images = torch.stack([prepare(image) for *_, image in batch])
        detections = predict(
            model, images, arguments.min_score, arguments.max_overlap, arguments.top_k, bf16=arguments.bf16
        )
        for (path, name, image), (boxes, labels, scores) in zip(batch, detections, strict=True):
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            save_png(draw_detections(image, boxes, labels, scores, classes=classes), target)
            _add_to_coco(coco, path, image.shape[-2:], boxes, labels, scores)
            counts = Counter(classes[label - 1] for label in labels.tolist())
            tqdm.write(f"{path}: {', '.join(f'{n} {name}' for name, n in counts.items()) or 'nothing found'}")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "detections.json") as temporary:
        temporary.write_text(json.dumps(coco, indent=1))
    done = len(pictures) - broken
    print(f"{done} pictures, {len(coco['annotations'])} objects: {out / 'detections.json'}")
    if broken:
        print(f"{broken} of {len(pictures)} pictures could not be read", file=sys.stderr)
    return 1 if broken else 0


def _add_to_coco(coco: dict, path: Path, size: Sequence[int], boxes, labels, scores) -> None:
    """Adds one picture (height, width) and its detections in pixels, cut at the picture's edge."""
    height, width = size
    image_id = len(coco["images"]) + 1
    coco["images"].append({"id": image_id, "file_name": str(path), "width": width, "height": height})
    pixels = boxes.clamp(0, 1) * boxes.new_tensor([width, height, width, height])
    for (x0, y0, x1, y1), label, score in zip(pixels.tolist(), labels.tolist(), scores.tolist(), strict=True):
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label,
                "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                "area": round((x1 - x0) * (y1 - y0), 2),
                "iscrowd": 0,
                "score": round(score, 5),
            }
        )


# -------------------------------------------------------------------------------------------------- demo, info


def _add_demo(commands) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "train and test a small detector on drawn shapes, no download",
        """Draws pictures of circles, squares and triangles on busy backgrounds, trains a network on them as `ssd train`
does (a narrow one on a CPU, the full one on a GPU), measures its mAP on pictures it has not seen, and draws what it
finds there beside the truth.""",
    )
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder for everything (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="passes over the pictures (default: enough for mAP 0.8)")
    parser.add_argument("--width", type=float, help="factor on all channels (default: 0.25 on a CPU, 1 on a GPU)")
    _add_machine_options(parser)


def _demo(arguments: argparse.Namespace) -> int:
    from ssd.demo import demo

    demo(
        arguments.out,
        epochs=arguments.epochs,
        width=arguments.width,
        device=arguments.device,
        workers=arguments.workers,
        bf16=arguments.bf16,
    )
    return 0


def _info(arguments: argparse.Namespace) -> int:
    import ssd_ext

    print(ssd_ext.info())
    return 0


if __name__ == "__main__":
    sys.exit(main())
