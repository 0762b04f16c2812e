"""Photographs as phones store them, with labels as LabelImg writes them."""

from __future__ import annotations

import base64
from pathlib import Path

from PIL import Image

from ssd.runtime.text import read_xml

# 64 x 96 pixels, orange above blue, stored with the orange on the left: 96 x 64 and a turn ("irot")
HEIC = base64.b85decode(
    b"0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004CZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=IV*mgE07O"
    b"6l0RRC200001ga82m00000005l;001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002sX>f9I0002MX>en20"
    b"001ZXm(>m0RwOV0058x000009`FGC{rLC*01pFT0096PKmiN^|NjGU00093kN^M!000939=ZZRVE_RDD?$MQ18@KU0|1Z!00RI30{|YNFo6Y"
    b"@>PacCZUPz%2mk;B0LTCU0{{p>VgLaE2SfqEa<C#m0000JV{dG7ZewhC0096E00w{n000zeb8uw<00000003YB002M$000nhX?SS>000032n"
    b"YxO000STa&L440000OX>e^}0000000001009Mo0s{nv0001`ZDe6|0001)C;_ht;NuINy08E4L;wG#4&*;518E?X|NVQd9sHH8|MJ`hv1LJZ"
    b"HXk?bNESScDPq2KO*^vOdR&P1r{~G_Y_OEE$f)+8r?#Qb9c4$gX^(#b#8y_^VwyCU3);)i06nyH2NK)~@I!l^JbW~vwnlu9<c21Gk3Bed=a-"
    b"c{He1Wsu8Yh1p8hqsgBiS5liEK{>I$60H~"
)
# EXIF orientation -> how an upright picture is turned to be stored.
STORED = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
LABELIMG = """<annotation>
\t<folder>{folder}</folder>
\t<filename>{stem}.jpg</filename>
\t<path>C:\\Users\\me\\Pictures\\{folder}\\{stem}.jpg</path>
\t<source>
\t\t<database>Unknown</database>
\t</source>
\t<size>
\t\t<width>{width}</width>
\t\t<height>{height}</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>0</segmented>
{objects}</annotation>
"""
OBJECT = """\t<object>
\t\t<name>{name}</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>0</truncated>
\t\t<difficult>0</difficult>
\t\t<bndbox>
\t\t\t<xmin>{xmin}</xmin>
\t\t\t<ymin>{ymin}</ymin>
\t\t\t<xmax>{xmax}</xmax>
\t\t\t<ymax>{ymax}</ymax>
\t\t</bndbox>
\t</object>
"""


def photograph(picture: Path, to: Path, orientation: int, scale: int) -> None:
    """Enlarges a picture, and stores it turned, with an EXIF orientation that turns it back."""
    with Image.open(picture) as image:
        large = image.convert("RGB").resize((image.width * scale, image.height * scale))
    exif = Image.Exif()
    exif[274] = orientation
    how = STORED[orientation]
    (large if how is None else large.transpose(how)).save(to, "JPEG", exif=exif.tobytes())


def label(annotation: Path, to: Path, scale: int) -> None:
    """Writes an annotation of Pascal VOC as LabelImg does for the enlarged upright picture."""
    root = read_xml(annotation)
    objects = ""
    for box in root.iter("object"):
        edges = {
            name: scale * round(float(box.findtext(f"bndbox/{name}"))) for name in ("xmin", "ymin", "xmax", "ymax")
        }
        objects += OBJECT.format(name=box.findtext("name"), **edges)
    size = {name: scale * int(root.findtext(f"size/{name}")) for name in ("width", "height")}
    to.write_text(LABELIMG.format(folder=to.parent.name, stem=to.stem, objects=objects, **size))
