"""How much do the JPEGs of cifar10-jpeg differ from CIFAR-10's original pixels? Of these we have 20 images: those that foolbox
3.3.4 ships as samples, foolbox/data/cifar10_*.png, the first 20 test images. Beside it: what a second compression does to the
same files (png_and_jpeg.py, "shifted").

    python results/speed/original_pixels.py DIR FOOLBOX/data
"""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from png_and_jpeg import as_jpeg, shifted


def pixels(image):
    return np.asarray(image.convert("RGB"), float)


def coarse(image):
    """Means of 4 x 4 pixels, which JPEG hardly changes: to find an image's file by."""
    return image.reshape(8, 4, 8, 4, 3).mean((1, 3)).ravel()


def squares(difference):
    """Mean squares of all values of a difference of images, and of its luma, blue and red chroma (JFIF's YCbCr)."""
    ycc = difference @ np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]).T
    return (difference**2).mean(), *(ycc**2).mean((0, 1))


def main(data, originals):
    files = sorted(Path(data).glob("*/*/*.jpg"))
    keys = np.stack([coarse(pixels(Image.open(file))) for file in files]).astype(np.float32)
    margins, rows = [], {}
    for path in sorted(Path(originals).glob("cifar10_*.png")):
        image = Image.open(path).convert("RGB")
        distance = ((keys - coarse(pixels(image))) ** 2).mean(1)
        found, other = np.argsort(distance)[:2]
        margins.append(distance[other] / distance[found])
        file = Image.open(files[found])
        for name, like in {
            "the original": image,
            "the original as such a JPEG, by Pillow": as_jpeg(image),
            "the file once more as such a JPEG, blocks 3 px elsewhere": shifted(file, 3),
            "the same, 4 px": shifted(file, 4),
            "3 px, and colour rounded 5 times as coarsely": shifted(file, 3, 5),
            "4 px, and colour rounded 5 times as coarsely": shifted(file, 4, 5),
        }.items():
            rows.setdefault(name, []).append(squares(pixels(like) - pixels(file)))
    print(f"{os.path.basename(data)}: {len(margins)} of {len(files):,} files found by their originals, the next at least {min(margins):.0f} times as far")
    print(f"{'root mean square difference from the file, of 255':58s}   all  luma  blue   red")
    for name, each in rows.items():
        print(f"{name:58s}" + "".join(f"{x:6.2f}" for x in np.sqrt(np.mean(each, 0))))


if __name__ == "__main__":
    main(*sys.argv[1:])
