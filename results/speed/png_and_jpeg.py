"""Copies of a folder of photographs at 32 px, FROM/<split>/<class>/, once as PNG, which loses nothing, and once as JPEG of quality
75 with halved colour, as the files of cifar10-jpeg are, under TO/png and TO/jpeg:

    python results/speed/png_and_jpeg.py FROM TO
"""

import sys
from pathlib import Path

from PIL import Image, ImageOps

SIZE = 32
source, to = map(Path, sys.argv[1:])
for file in sorted(f for f in source.glob("*/*/*") if f.suffix.lower() in (".jpg", ".jpeg", ".png")):
    image = ImageOps.fit(ImageOps.exif_transpose(Image.open(file)).convert("RGB"), (SIZE, SIZE), Image.Resampling.BILINEAR)
    for kind, options in ("png", {}), ("jpeg", {"quality": 75, "subsampling": "4:2:0"}):
        path = to / kind / file.relative_to(source).with_suffix(f".{kind}")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
