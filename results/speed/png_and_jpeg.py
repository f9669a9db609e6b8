"""Copies of a folder of photographs at 32 px, FROM/<split>/<class>/, as files that lose nothing and as JPEGs of quality 75 with
halved colour, as the files of cifar10-jpeg are, under TO/<kind>/:

    python results/speed/png_and_jpeg.py FROM TO [SHIFT]

png: as PNG. jpeg: as JPEG. shifted: as JPEG whose blocks begin SHIFT (3) px further left and higher, for files that are such
JPEGs already, and would hardly change by the same blocks once more; kept as PNG. If SHIFT is even colour is halved where it was.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIZE = 32
JPEG = {"format": "JPEG", "quality": 75, "subsampling": "4:2:0"}


def shifted(image, shift):
    file, edge = io.BytesIO(), (shift, shift)
    Image.fromarray(np.pad(image, (edge, edge, (0, 0)), "reflect")).save(file, **JPEG)
    return Image.open(file).crop((shift, shift, shift + SIZE, shift + SIZE))


def main(source, to, shift=3):
    for file in sorted(f for f in Path(source).glob("*/*/*") if f.suffix.lower() in (".jpg", ".jpeg", ".png")):
        image = ImageOps.fit(ImageOps.exif_transpose(Image.open(file)).convert("RGB"), (SIZE, SIZE), Image.Resampling.BILINEAR)
        for kind, copy, options in ("png", image, {"format": "PNG"}), ("jpeg", image, JPEG), ("shifted", shifted(image, int(shift)), {"format": "PNG"}):
            path = Path(to) / kind / file.relative_to(source).with_suffix(f".{options['format'].lower()}")
            path.parent.mkdir(parents=True, exist_ok=True)
            copy.save(path, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
