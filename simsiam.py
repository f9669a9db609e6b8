"""SimSiam (Chen & He 2021, arXiv 2011.10566), on augmented or on semantic pairs.

    python simsiam.py --pairs semantic                                 # built-in scenes, minutes on two CPU cores
    python simsiam.py --pairs augmented                                # its matched baseline
    python simsiam.py --pairs semantic --data cifar10 --download       # ResNet-18, 200 epochs: for a GPU

    x1, x2   two views (N, 3, S, S): of one image, or of two images of one category
    h        backbone features (N, width): what evaluation uses
    z        embeddings (N, d) of the projector; as a target, a constant to the loss (stop-gradient)
    p        predictions (N, d) of the other view's z

What changes relative to simclr.py: a predictor, whose learning rate stays constant, a stop-gradient, no negatives at all, no
warm-up, a projector whose last BatchNorm has neither scale nor bias, and ResNet blocks that start as the identity.

Without negatives "all embeddings equal" is a perfect solution. The stop-gradient makes each step a regression onto a target
that stands still, as in alternating optimisation (Sec. 5); why this does not end in that solution the paper leaves open (for
linear networks: Tian et al. 2021, arXiv 2102.06810).

Deviations from the paper and facebookresearch/simsiam
  1. The learning rate falls along a cosine by step, not by epoch (the predictor's stays constant, as with its
     --fix-pred-lr). Crops are taken from a centre square of --image-size (paper: from the whole picture). Blur's
     kernel is SimCLR's, a Gaussian at most a tenth of the side wide, and the image is mirrored at its border (official:
     Pillow's, three passes of a box, and the edge repeated).
  2. The projector has two layers (the paper's App. D, for CIFAR-10); --projector-layers 3 is the paper's
     for ImageNet. Its hidden layers are as wide as z, as in the paper (official: as the backbone's features).
  3. On photographs 200 epochs (App. D: 800).
  4. On scenes: a small convnet, a narrower projector, small batches (more steps in a few minutes), lr 0.4, crops
     of at least 0.8 of the area, no blur; colour jitter weak in brightness and contrast, strong in saturation
     and hue, so that colour is no shortcut for augmented pairs; weight decay 1e-5. The predictor is as wide as the
     embedding: with a bottleneck, and with a lower lr, some runs ended with most embeddings in one direction
     (results/scenes/simsiam-recipe.txt).

Measured with the default options on scenes, two CPU cores, bf16, five seeds (results/scenes): linear probe on held-out
categories 0.830 ± 0.037 with semantic pairs, 0.736 ± 0.024 with augmented pairs, 0.212 ± 0.055 untrained, chance 0.05.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

import evaluate
import pairs

# ------------------------------------------------------------------------------------------- CONFIG

# defaults: on the built-in scenes, and on photographs (SimSiam App. D: CIFAR-10)
RECIPES = {
    "scenes": dict(backbone="convnet", epochs=30, batch_size=64, lr=0.4, weight_decay=1e-5,
                   crop_min=0.8, jitter=[0.2, 0.2, 0.8, 0.5], embedding_dim=512, bottleneck_dim=512),
    "photographs": dict(backbone="resnet18", epochs=200, batch_size=512, lr=0.03, weight_decay=5e-4,
                        crop_min=0.2, jitter=[0.4, 0.4, 0.4, 0.1], embedding_dim=2048, bottleneck_dim=512),
}


def parse_args(argv=None):
    parser = pairs.Parser(description=__doc__.splitlines()[0])
    add, default = parser.add_argument, pairs.default_help(RECIPES)
    # -- shared by the four methods, word for word
    add("--pairs", default="augmented", help="augmented: two views of one image; semantic: two images of one class; FILE.csv: a curated list with columns image_a,image_b [augmented]")
    add("--arm", default="semantic", choices=["semantic", "augmented"], help="for FILE.csv only: semantic, its pairs, or augmented, each image_a with itself, the matched baseline [semantic]")
    add("--semantic-share", type=pairs.fraction, default=1.0, help="share of the semantic (or the list's) pairs kept, redrawn every epoch; the rest become augmented: how few suffice? [1]")
    add("--false-pairs", type=pairs.fraction, default=0.0, help="share of the semantic (or the list's) partners drawn from another category, redrawn every epoch: what does curation buy? [0]")
    add("--data", type=pairs.named, help=f"scenes; a folder of class folders, with train/ and test/ or without; or {', '.join(pairs.TORCHVISION_SETS)}; with FILE.csv the folder that its paths are relative to, by default the list's own, and then the run is not judged [scenes]")
    add("--root", type=pairs.named, default="data", help="folder of torchvision's data sets [data]")
    add("--download", action="store_true", help="let torchvision download the data set into --root")
    add("--image-size", type=pairs.positive_int, help="side of the images in pixels [scenes 32, else the set's own, at most 224]")
    add("--limit", type=pairs.positive_int, help="only the first N training images, classes in turn; with FILE.csv, the first N rows [all]")
    add("--skip-bad", action="store_true", help="leave out images that cannot be read, and say which, instead of stopping")
    add("--cache", type=pairs.named, default="cache", help="folder for decoded image files, kept for later runs [cache]")
    add("--backbone", type=evaluate.architecture, help=f"convnet, or a classification model of torchvision such as resnet18, resnet50 {default('backbone')}")
    add("--epochs", type=pairs.positive_int, help=f"passes over the anchors {default('epochs')}")
    add("--batch-size", type=pairs.positive_int, help=f"pairs in a step {default('batch_size')}")
    add("--lr", type=pairs.positive_float, help=f"peak learning rate per 256 pairs: a step uses lr * batch / 256 (Goyal et al. 2017) {default('lr')}")
    add("--weight-decay", type=pairs.nonnegative_float, help=f"coefficient of the L2 penalty {default('weight_decay')}")
    add("--seed", type=pairs.seed_int, default=0, help="seed of the scenes, the weights, the order, the partners and the augmentation [0]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ... [cuda if there is one]")
    add("--precision", choices=["bfloat16", "float32"], help="number format of the networks (losses: always float32); float32 is the same on every machine but for rounding [bfloat16 where that is faster]")
    add("--compile", nargs="?", default=False, const="reduce-overhead", choices=["default", "reduce-overhead", "max-autotune"], help="torch.compile the networks, in this mode or, if none is named, reduce-overhead; all but default use CUDA graphs, without which it did not pay on a GPU. Costs time at the start, and gains little on a CPU (README, Speed) [off]")
    add("--out", type=pairs.named, help="run folder [runs/<method>-<pairs>-<data>-seed<seed>]")
    add("--resume", action="store_true", help="go on from the run folder's checkpoint, with the same options")
    add("--without", default="", help="transforms to switch off, comma-separated: crop, flip, jitter, gray, blur, solarize [none]")
    # -- SimSiam's own
    add("--crop-min", type=pairs.fraction, help=f"smallest crop, share of the image area (App. A: 0.2, as MoCo v2) {default('crop_min')}")
    add("--jitter", type=pairs.nonnegative_float, nargs=4, help=f"brightness, contrast, saturation, hue (MoCo v2: 0.4 0.4 0.4 0.1) {default('jitter')}")
    add("--gray", type=pairs.fraction, default=0.2, help="probability of grayscale (MoCo v2) [0.2]")
    add("--blur", type=pairs.fraction, nargs=2, help="probability of blur in view 1 and view 2 (MoCo v2) [0.5 0.5; 0 0 below 64 px]")
    add("--solarize", type=pairs.fraction, nargs=2, default=[0.0, 0.0], help="probability of solarisation in view 1 and view 2 [0 0]")
    add("--embedding-dim", type=pairs.positive_int, help=f"width d of projector and embedding (Sec. 3: 2048) {default('embedding_dim')}")
    add("--bottleneck-dim", type=pairs.positive_int, help=f"hidden width of the predictor (Sec. 3: 512, a quarter of d) {default('bottleneck_dim')}")
    add("--projector-layers", type=int, default=2, choices=[2, 3], help="layers of the projector (3 for ImageNet, 2 in App. D) [2]")
    parser.set_defaults(zero_init_residual=True)  # a ResNet's blocks start as the identity, as in the official code
    return pairs.parse(parser, argv, RECIPES)


# -------------------------------------------------------------------------------------------- MODEL


class SimSiam(nn.Module):
    def __init__(self, backbone, width, embedding_dim, bottleneck_dim, projector_layers):
        super().__init__()
        self.backbone = backbone
        layers = []
        for _ in range(projector_layers - 1):
            layers += [nn.Linear(width, embedding_dim, bias=False), nn.BatchNorm1d(embedding_dim), nn.ReLU(inplace=True)]
            width = embedding_dim
        self.projector = nn.Sequential(
            *layers,
            nn.Linear(width, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(embedding_dim, bottleneck_dim, bias=False),
            nn.BatchNorm1d(bottleneck_dim),
            nn.ReLU(inplace=True),
            nn.Linear(bottleneck_dim, embedding_dim),
        )

    def forward(self, x):
        h = self.backbone(x)  # (N, width)
        z = self.projector(h)  # (N, d)
        return z, self.predictor(z)


# --------------------------------------------------------------------------------------------- LOSS


def negative_cosine(p, z):
    """Negative cosine similarity -cos(p, z), the mean over the batch (SimSiam, Eq. 1).

    p, z: (N, d), of any norm. z is a constant: no gradient goes to it (Eq. 3). Between -1 and 1.
    """
    return -F.cosine_similarity(p, z.detach(), dim=1).mean()


# ---------------------------------------------------------------------------------------- SCHEDULES


def learning_rate(step, total, peak):
    """Half a cosine from peak at step 0 to 0 at step = total."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / total))


# -------------------------------------------------------------------------------------------- TRAIN


def train(model, optimizer, source, view1, view2, run, args):
    device = torch.device(args.device)
    steps_per_epoch = len(source) // args.batch_size
    total, peak = args.epochs * steps_per_epoch, args.lr * args.batch_size / 256
    images = pairs.to_device(source.pool.images, device)
    network = evaluate.parallel(model, args.compile)  # the model itself; under torchrun a wrapper that averages the gradients
    for epoch in range(run.epoch, args.epochs):  # run.epoch, run.step: 0, or where --resume goes on
        for x1, x2 in pairs.batches(source, epoch, args.batch_size, view1, view2, device, images):
            lr = learning_rate(run.step, total, peak)
            backbone_and_projector, predictor = optimizer.param_groups
            backbone_and_projector["lr"], predictor["lr"] = lr, peak  # Sec. 4.2: the predictor should keep up with z
            with evaluate.autocast(device, args.precision):
                (z1, p1), (z2, p2) = network(x1), network(x2)
            loss = 0.5 * negative_cosine(p1.float(), z2.float()) + 0.5 * negative_cosine(p2.float(), z1.float())

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(epoch, loss, lr, z1)  # counts the step: run.step + 1
        run.save(epoch + 1)  # at most every 20 seconds, and at the end


# --------------------------------------------------------------------------------------------- main


def main():
    args = parse_args()
    device = evaluate.join(args.device, args.batch_size)
    source = pairs.load_pairs(args)
    view1, view2 = pairs.make_views(args, source.pool.image_size)

    torch.manual_seed(args.seed)  # the backbone first: equal initial weights in both arms and all methods (but for zero_init_residual in SimSiam's ResNets)
    backbone, width = evaluate.build_backbone(args.backbone, source.pool.image_size, args.zero_init_residual, verbose=True)
    model = SimSiam(backbone, width, args.embedding_dim, args.bottleneck_dim, args.projector_layers)
    model = model.to(device, memory_format=torch.channels_last)  # the layout in which convolutions are fast
    groups = [{"params": [*model.backbone.parameters(), *model.projector.parameters()]}, {"params": model.predictor.parameters()}]
    optimizer = torch.optim.SGD(groups, args.lr, momentum=0.9, weight_decay=args.weight_decay, fused=device.type == "cuda")

    run = evaluate.Run("simsiam", args, source, view1, view2, model, optimizer)
    train(model, optimizer, source, view1, view2, run, args)
    run.finish()


if __name__ == "__main__":
    pairs.run_cli(main)
