"""Time and memory for data sets of the size of COCO: a few generated pictures under many names, in each format.

    .venv/bin/python benchmarks/scale.py [--pictures 118000] [--formats coco voc yolo] [--work open workers eval fit]

Prints CPU and wall time in seconds, and the memory beyond the imports in MB. Each work runs in its own process:

    open     opens the data set without and with the cache
    workers  reads batches with two workers, and prints their private memory
    eval     evaluates a COCO results file with 100 detections per picture, by the metrics of Pascal VOC and COCO
    fit      runs `ssd info`
    shards   writes the set as archives of WebDataset, and opens them without and with the cache
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES, OBJECTS, SIDE = 80, 7.3, 64  # OBJECTS per picture, as in COCO; SIDE of the pictures in pixels
DETECTIONS = 100  # per picture
BATCHES, BATCH = 2000, 8
FORMATS, WORK = ("coco", "voc", "yolo"), ("open", "workers", "eval", "fit", "shards")


def make_set(folder: Path, layout: str, n: int) -> None:
    """Writes n pictures in the layout of a format: hard links to 20 files, with objects from a fixed seed."""
    from PIL import Image

    rng = np.random.default_rng(0)
    few = []
    for i in range(20):
        path = folder / f"original_{i}.jpg"
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
        few.append(path)
    counts = rng.poisson(OBJECTS, n)
    sides = rng.uniform(4, SIDE / 2, (counts.sum(), 2)).round(2)
    corners = (rng.random((counts.sum(), 2)) * (SIDE - sides)).round(2)
    labels = rng.integers(0, CLASSES, counts.sum())
    ends = counts.cumsum()
    places = {"coco": "train", "voc": "JPEGImages", "yolo": "images"}
    pictures = folder / places[layout]
    pictures.mkdir()
    for i in range(n):
        os.link(few[i % len(few)], pictures / f"{i:012}.jpg")
    if layout == "coco":
        (folder / "annotations").mkdir()
        with open(folder / "annotations" / "instances_train.json", "w") as file:
            rows = ({"id": k, "name": f"class {k}", "supercategory": "thing"} for k in range(CLASSES))
            file.write('{"info": {}, "categories": ' + json.dumps(list(rows)) + ', "images": [')
            for i in range(n):
                row = {"license": 3, "file_name": f"{i:012}.jpg", "height": SIDE, "width": SIDE, "id": i}
                file.write(", " * (i > 0) + json.dumps(row))
            file.write('], "annotations": [')
            order = rng.permutation(len(labels))
            images = np.repeat(np.arange(n), counts)
            for k, j in enumerate(order.tolist()):
                box = [*corners[j].tolist(), *sides[j].tolist()]
                polygon = [[round(x, 2) for x in (rng.random(36) * SIDE).tolist()]]
                row = {"segmentation": polygon, "area": box[2] * box[3] / 2, "iscrowd": int(k % 80 == 0)}
                row |= {"image_id": int(images[j]), "bbox": box, "category_id": int(labels[j]), "id": k}
                file.write(", " * (k > 0) + json.dumps(row))
            file.write("]}")
        return
    texts = folder / {"voc": "Annotations", "yolo": "labels"}[layout]
    texts.mkdir()
    if layout == "yolo":
        (folder / "classes.txt").write_text("".join(f"class {k}\n" for k in range(CLASSES)))
    for i in range(n):
        rows = range(ends[i] - counts[i], ends[i])
        if layout == "voc":
            objects = "".join(
                f"<object><name>class {labels[j]}</name><difficult>0</difficult><bndbox>"
                f"<xmin>{corners[j][0] + 1}</xmin><ymin>{corners[j][1] + 1}</ymin>"
                f"<xmax>{corners[j][0] + sides[j][0]}</xmax>"
                f"<ymax>{corners[j][1] + sides[j][1]}</ymax></bndbox></object>"
                for j in rows
            )
            size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{i:012}.jpg</filename>{size}{objects}</annotation>"
            (texts / f"{i:012}.xml").write_text(text)
        else:
            lines = ((labels[j], *(corners[j] + sides[j] / 2) / SIDE, *sides[j] / SIDE) for j in rows)
            (texts / f"{i:012}.txt").write_text("".join("{} {:.5f} {:.5f} {:.5f} {:.5f}\n".format(*x) for x in lines))


def make_detections(folder: Path, n: int) -> Path:
    """Writes random detections for the n pictures, as a COCO results file; returns its path."""
    rng = np.random.default_rng(1)
    with open(folder / "results.json", "w") as file:
        for i in range(n):
            boxes = (rng.random((DETECTIONS, 4)) * SIDE / 2).round(2).tolist()
            labels, scores = rng.integers(0, CLASSES, DETECTIONS).tolist(), rng.random(DETECTIONS).round(5).tolist()
            rows = (
                {"image_id": i, "category_id": label, "bbox": box, "score": score}
                for box, label, score in zip(boxes, labels, scores, strict=True)
            )
            file.write(("[" if i == 0 else ",\n") + ",".join(map(json.dumps, rows)))
        file.write("]")
    return folder / "results.json"


def memory(kind: str, pid: int | str = "self") -> float:
    """A field of /proc/<pid>/status or smaps_rollup, in MB."""
    for name in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) / 1024
    raise ValueError(kind)


@contextlib.contextmanager
def measured(name: str):
    before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    more = memory("VmRSS") - before
    text = f"{name:<34} {cpu:8.1f} s CPU, {wall:8.1f} s wall, {more:7.0f} MB more, {peak:7.0f} MB peak"
    print(text, flush=True)


def work(kind: str, layout: str, folder: Path) -> None:
    """Does one kind of work; main calls it in a new process."""
    import ssd.cli
    import ssd.evaluation.evaluate
    import ssd.training.run
    from ssd.data import AUGMENTATIONS, open_dataset
    from ssd.data.conversion import convert_dataset
    from ssd.data.loader import train_loader

    if kind == "open":
        for time_ in ("the first time", "from the cache"):
            with measured(f"{layout}, open {time_}"):
                dataset = open_dataset(folder)
        print(f"{len(dataset)} pictures, {sum(dataset.counts.values())} objects")
    elif kind == "workers":
        dataset = open_dataset(folder, transform=AUGMENTATIONS["ssd"](300))
        loader = train_loader(dataset, BATCH, 0, range(BATCHES), workers=2)
        batches = iter(loader)
        own = []
        for i, _ in enumerate(batches):
            if i in (0, BATCHES - 10):
                pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                own.append([memory("Private_Dirty", pid) for pid in pids])
        text = " -> ".join(", ".join(f"{mb:.0f}" for mb in sorted(each)[-2:]) for each in own)
        print(f"{layout}, private memory of the two workers, first batch -> after {BATCHES - 10} batches: {text} MB")
    elif kind == "eval":
        from ssd.evaluation.detection_file import DetectionFile
        from ssd.evaluation.evaluate import score

        for method in ("area", "coco"):
            with measured(f"{layout}, eval --method {method}"):
                dataset = open_dataset(folder, keep_crowds=True)
                file = DetectionFile(folder / "results.json")
                with contextlib.redirect_stdout(open(os.devnull, "w")):
                    score(file.detections(dataset), dataset.truths, dataset.classes, method=method)
    elif kind == "shards":
        shards = folder.with_name(f"{folder.name}_shards")
        shutil.rmtree(shards, ignore_errors=True)
        with measured(f"{layout}, write archives"):
            convert_dataset([folder], shards, "webdataset")
        for time_ in ("the first time", "from the cache"):
            with measured(f"{layout}, open archives {time_}"):
                dataset = open_dataset(shards)
        print(f"{len(dataset)} pictures, {sum(dataset.counts.values())} objects")
    else:
        with measured(f"{layout}, ssd info"), contextlib.redirect_stdout(open(os.devnull, "w")):
            ssd.cli.main(["info", str(folder)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=118_000, help="pictures of each set (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    parser.add_argument("--folder", type=Path, help="the sets are kept there (default: a temporary folder)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        work(*args.one, args.folder)
        return
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        for layout in args.formats:
            folder = (args.folder or Path(temporary)) / f"{layout}_{args.pictures}"
            if not folder.exists():
                folder.mkdir(parents=True)
                make_set(folder, layout, args.pictures)
            for kind in args.work:
                if kind == "eval":
                    if layout != "coco":
                        continue
                    make_detections(folder, args.pictures)
                command = [sys.executable, __file__, "--folder", str(folder), "--one", kind, layout]
                if code := subprocess.run(command, env=environment).returncode:
                    print(f"{layout}, {kind}: failed with exit code {code}", flush=True)


if __name__ == "__main__":
    main()
