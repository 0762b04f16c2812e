"""Files of annotations as labelling tools write them, each with one box of the class "thing" in every picture."""

import json
from pathlib import Path
from urllib.parse import quote

from PIL import Image

SIZE, BOX = (64, 48), (10, 12, 34, 36)


def write(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def draw(path: Path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, "JPEG")


def labelme(name, shapes=None, **other):
    x0, y0, x1, y1 = BOX
    rectangle = {"label": "thing", "points": [[x1, y0], [x0, y1]], "group_id": None, "shape_type": "rectangle"}
    content = {"version": "5.4.1", "flags": {}, "shapes": [rectangle] if shapes is None else shapes, "imagePath": name}
    return content | {"imageData": None, "imageHeight": SIZE[1], "imageWidth": SIZE[0]} | other


def via(names, regions=None):
    x0, y0, x1, y1 = BOX
    shape = {"name": "rect", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
    regions = [{"shape_attributes": shape, "region_attributes": {"kind": "thing"}}] if regions is None else regions
    return {
        f"{name}{1000 + i}": {"filename": name, "size": 1000 + i, "regions": regions, "file_attributes": {}}
        for i, name in enumerate(names)
    }


def via_project(names, regions=None):
    return {
        "_via_settings": {"project": {"name": "p"}},
        "_via_img_metadata": via(names, regions),
        "_via_attributes": {},
    }


def percent(box=BOX):
    x0, y0, x1, y1 = box
    edges = x0 / SIZE[0], y0 / SIZE[1], (x1 - x0) / SIZE[0], (y1 - y0) / SIZE[1]
    return dict(zip(("x", "y", "width", "height"), (100 * edge for edge in edges), strict=True))


OF_PICTURE = {"original_width": SIZE[0], "original_height": SIZE[1]}


def region(value=None, kind="rectanglelabels", label="thing", **other):
    value = {"rotation": 0, kind: [label]} | (percent() if value is None else value)
    return OF_PICTURE | {"image_rotation": 0, "value": value, "id": "r", "from_name": "label", "type": kind} | other


def label_studio(addresses, results=None):
    results = [region()] if results is None else results
    return [
        {
            "id": i,
            "annotations": [{"id": i, "result": results, "was_cancelled": False, "created_at": "2024-01-02T00:00:00Z"}],
            "file_upload": "ab12cd34-a.jpg",
            "data": {"image": address, "weather": "rain"},
            "predictions": [],
        }
        for i, address in enumerate(addresses)
    ]


def label_studio_min(addresses):
    value = percent() | {"rotation": 0, "rectanglelabels": ["thing"]} | OF_PICTURE
    row = {"label": [value], "annotator": 1, "annotation_id": 1, "created_at": "2024-01-02T00:00:00Z"}
    return [row | {"img": address, "id": i, "weather": "rain"} for i, address in enumerate(addresses)]


def upload(name):
    """The address of a file that was uploaded to Label Studio, which stores it under another name."""
    return f"/data/upload/1/ab12cd34-{quote(name.replace(' ', '_').replace('#', ''))}"


def cvat(names, shapes=None, subset=None):
    x0, y0, x1, y1 = map(float, BOX)
    shapes = shapes or f'<box label="thing" occluded="0" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" z_order="0"></box>'
    part = f' subset="{subset}"' if subset else ""
    images = "".join(
        f'<image id="{i}" name="{name}"{part} width="{SIZE[0]}" height="{SIZE[1]}">{shapes}</image>'
        for i, name in enumerate(names)
    )
    labels = "<label><name>thing</name><type>rectangle</type></label><label><name>tip</name><type>points</type></label>"
    meta = f"<meta><task><name>t</name><labels>{labels}</labels></task></meta>"
    return f"<?xml version='1.0' encoding='utf-8'?><annotations><version>1.1</version>{meta}{images}</annotations>"


def table(names, header, row):
    """A CSV file; the row may have {name}, the sizes {w}, {h}, {bw}, {bh}, the edges {x0}... and fractions {fx0}..."""
    x0, y0, x1, y1 = BOX
    edges = {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "xmin": x0 + 1, "ymin": y0 + 1}
    (w, h), fractions = SIZE, {"fx0": x0 / SIZE[0], "fy0": y0 / SIZE[1], "fx1": x1 / SIZE[0], "fy1": y1 / SIZE[1]}
    edges |= {"bw": x1 - x0, "bh": y1 - y0}
    lines = [row.format(name=name, stem=name.rpartition(".")[0], w=w, h=h, **edges, **fractions) for name in names]
    return "".join(f"{line}\n" for line in (*[header] * bool(header), *lines))


def createml(names):
    x0, y0, x1, y1 = BOX
    box = {"x": (x0 + x1) / 2, "y": (y0 + y1) / 2, "width": x1 - x0, "height": y1 - y0}
    return [{"image": name, "annotations": [{"label": "thing", "coordinates": box}]} for name in names]


XML_TO_CSV = "filename,width,height,class,xmin,ymin,xmax,ymax", "{name},{w},{h},thing,{xmin},{ymin},{x1},{y1}"
KERAS = "", "{name},{x0},{y0},{x1},{y1},thing"
DEEP_FOREST = "image_path,xmin,ymin,xmax,ymax,label", "{name},{x0},{y0},{x1},{y1},thing"
SKU = "", "{name},{x0},{y0},{x1},{y1},thing,{w},{h}"
MAKE_SENSE = (
    "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height",
    "thing,{x0},{y0},{bw},{bh},{name},{w},{h}",
)
LISA = (
    "Filename;Annotation tag;Upper left corner X;Upper left corner Y;Lower right corner X;Lower right corner Y",
    "vid0/{name};thing;{x0};{y0};{x1};{y1}",
)
WHEAT = "image_id,width,height,bbox,class", '{stem},{w},{h},"[{x0}.0, {y0}.0, {bw}.0, {bh}.0]",thing'
OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside",
    "{stem},xclick,/m/01,1,{fx0},{fx1},{fy0},{fy1},0,0,0,0,0",
)
