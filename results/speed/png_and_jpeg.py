"""Copies of a folder of photographs at 32 px, FROM/<split>/<class>/, as files that lose nothing and as JPEGs of quality 75 with
halved colour, as the files of cifar10-jpeg are, under TO/<kind>/:

    python results/speed/png_and_jpeg.py FROM TO [SHIFT [COARSER]]

png: as PNG. jpeg: as JPEG. shifted: as JPEG whose blocks begin SHIFT (3) px further left and higher, for files that are such
JPEGs already, and would hardly change by the same blocks once more; kept as PNG. If SHIFT is even colour is halved where it was.
COARSER (1): by how much colour is rounded more coarsely there. 5 changes such JPEGs about as much as their first compression did
their originals (original_pixels.py).
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIZE = 32
JPEG = {"format": "JPEG", "quality": 75, "subsampling": "4:2:0"}


def as_jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, **JPEG | options)
    return Image.open(file)


LUMA, CHROMA = as_jpeg(Image.new("RGB", (SIZE, SIZE))).quantization.values()  # the steps to which that quality rounds


def shifted(image, shift, coarser=1):
    edge = (shift, shift)
    image = Image.fromarray(np.pad(image, (edge, edge, (0, 0)), "reflect"))
    image = as_jpeg(image, quality=-1, qtables=[LUMA, [min(255, coarser * step) for step in CHROMA]])  # -1: the steps as given
    return image.crop((shift, shift, shift + SIZE, shift + SIZE))


def main(source, to, shift=3, coarser=1):
    for file in sorted(f for f in Path(source).glob("*/*/*") if f.suffix.lower() in (".jpg", ".jpeg", ".png")):
        image = ImageOps.fit(ImageOps.exif_transpose(Image.open(file)).convert("RGB"), (SIZE, SIZE), Image.Resampling.BILINEAR)
        for kind, copy, options in ("png", image, {"format": "PNG"}), ("jpeg", image, JPEG), ("shifted", shifted(image, int(shift), int(coarser)), {"format": "PNG"}):
            path = Path(to) / kind / file.relative_to(source).with_suffix(f".{options['format'].lower()}")
            path.parent.mkdir(parents=True, exist_ok=True)
            copy.save(path, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
