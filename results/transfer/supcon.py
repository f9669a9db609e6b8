"""Supervised contrastive learning (SupCon; Khosla et al. 2020, arXiv 2004.11362), beside the semantic pairs of simclr.py.

    python results/transfer/supcon.py --pairs augmented ...       # the options of simclr.py; commands in run.sh and ../scenes/run.sh

In simclr.py labels choose the partner, in negatives.py they also choose the negatives; here every image of the batch that is of
the anchor's class is a positive. --pairs augmented is the paper's method, --pairs semantic puts two images of the class in each
pair. All else is simclr.py's, the random draws and the options included: none was chosen for this loss.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
import negatives
import pairs


def sup_con(z1, z2, temperature, labels):
    """The loss L_out of the paper (Eq. 2), the mean over the 2N anchors; labels: int64 (N,), of the anchors and of their partners.

    z1, z2: (N, d), of any norm, they are normalised here. If no two labels are equal it is simclr.nt_xent; if all embeddings are
    equal it is log(2N - 1), as that. (Official code: times temperature / 0.07.)
    """
    z, labels = F.normalize(torch.cat([z1, z2]), dim=1), labels.repeat(2)  # (2N, d), (2N,)
    similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))  # (2N, 2N)
    positive = (labels[:, None] == labels).fill_diagonal_(False)  # (2N, 2N)
    log_p = F.log_softmax(similarity, dim=1).masked_fill(~positive, 0)
    return -(log_p.sum(1) / positive.sum(1)).mean()


if __name__ == "__main__":
    pairs.run_cli(lambda: negatives.main("supcon", sup_con))
