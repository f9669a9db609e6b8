"""What two backbones hold alike: the nearest neighbours of held-out scenes in the features of an augmented and of a semantic run.

    python results/lists/neighbours.py RUN RUN FILE.png        # the augmented run first

The first test image of each of eight held-out categories, and the six images that are nearest to it by cosine similarity among the
other 999; a frame marks those of its category. Nothing was picked.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
import evaluate
import pairs

if len(sys.argv) != 4:
    sys.exit(__doc__)
*runs, file = sys.argv[1:]
queries, nearest = 8, 6
widths = [1, 0.4, *[1] * nearest, 0.4, *[1] * nearest]
figure, axes = plt.subplots(queries, len(widths), figsize=(0.65 * sum(widths), 0.65 * queries + 0.3), gridspec_kw={"width_ratios": widths})
for axis in axes.flat:
    axis.axis("off")


def show(axis, image, framed=False):
    axis.imshow(image.permute(1, 2, 0), interpolation="nearest")
    if framed:
        axis.add_patch(plt.Rectangle((-0.5, -0.5), *image.shape[1:], fill=False, edgecolor="tab:green", linewidth=3))


for arm, run in enumerate(runs):
    config, backbone, _ = evaluate.load_run(Path(run))
    scenes = pairs.scenes("test", seed=config["seed"], held_out=True)
    h = F.normalize(evaluate.features(backbone, scenes.images), dim=1)
    similarity = (h @ h.T).fill_diagonal_(-1)
    same = (scenes.labels[similarity.topk(nearest).indices] == scenes.labels[:, None]).float().mean()
    for query, found in enumerate(similarity[:queries].topk(nearest).indices.tolist()):
        show(axes[query, 0], scenes.images[query])
        for place, image in enumerate(found, start=2 + arm * (nearest + 1)):
            show(axes[query, place], scenes.images[image], scenes.labels[image] == scenes.labels[query])
    axes[0, 2 + arm * (nearest + 1)].set_title(f"{evaluate.arm_of(config)} pairs", loc="left", fontsize=9)
    print(f"{run}: {same:.3f} of the {nearest} nearest of all {len(scenes):,} images are of the image's category")
axes[0, 0].set_title("image", loc="left", fontsize=9)
figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.945, wspace=0.06, hspace=0.06)
figure.savefig(file, dpi=100)
