"""Is our average precision COCO's? On the annotations of a folder of the VOC layout, with random detections: against pycocotools.

    pip install pycocotools && python results/detection/agreement.py bccd-voc > results/detection/agreement.txt

Detections lie near the true boxes, doubled, of a wrong class, or anywhere. A tenth of the objects is marked difficult, as BCCD
has none; some images have no object, or detections in other places only. With distinct scores, and with many equal ones; three draws of each.
"""

import contextlib
import sys
from importlib.metadata import version

import numpy as np

sys.path[:0] = [".", "tests"]
import evaluate
import pairs
from test_detect import pycocotools_average_precision, random_detections, truth_of

for split, data in zip(("training", "test"), pairs.load_boxes(sys.argv[1:2])):
    for ties in (False, True):
        for seed in range(3):
            rng, truth, found = np.random.default_rng(seed), [], []
            for i, (boxes, labels) in enumerate(zip(data.boxes, data.labels)):
                objects, detected = (0 if i % 9 == k else None for k in (2, 4))  # how many: none, or all
                b, labels = boxes.numpy().astype(float)[:objects], labels.numpy()[:objects]
                truth.append(truth_of(b, labels, rng.random(len(b)) < (1 if i % 9 == 1 else 0.1)))
                found.append(random_detections(b[:detected], labels[:detected], len(data.classes), rng, ties))
            with contextlib.redirect_stdout(None):
                theirs = pycocotools_average_precision(truth, found, len(data.classes))
            ours = evaluate.coco_average_precision(truth, found, len(data.classes))
            print(f"{len(data)} {split} images, {sum(len(t['boxes']) for t in truth):,} boxes, {sum(len(f['boxes']) for f in found):,} detections, "
                  f"{'equal' if ties else 'distinct'} scores, seed {seed}: AP {ours.mean():.4f}, largest difference of "
                  f"{ours.size} values {np.abs(ours - theirs).max():.1e}", flush=True)
print(f"pycocotools {version('pycocotools')}, numpy {np.__version__}")
