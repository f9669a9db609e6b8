"""The kNN accuracy of a run on the CIFAR-10 JPEGs, by hand: backbone.pt, torchvision and a loop, nothing of this repository.

    python results/cifar10-two-epochs/knn_by_hand.py RUN DIR        for a run with --limit 2000
"""

import json
import sys

import torch
import torchvision
from torchvision.transforms import v2

run, folder = sys.argv[1:]
net = torchvision.models.resnet18()
net.conv1, net.maxpool, net.fc = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity(), torch.nn.Identity()
net.load_state_dict(torch.load(f"{run}/backbone.pt", weights_only=True))
net.eval()
transform = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])


@torch.no_grad()
def unit_features(split, per_class):
    data = torchvision.datasets.ImageFolder(f"{folder}/{split}", transform)
    count, kept = {}, []
    for i, (_, label) in enumerate(data.samples):
        count[label] = count.get(label, 0) + 1
        if count[label] <= per_class:
            kept.append(i)
    batches = [(net(x), y) for x, y in torch.utils.data.DataLoader(torch.utils.data.Subset(data, kept), 250)]
    x = torch.cat([x for x, _ in batches])
    return x / x.norm(dim=1, keepdim=True), torch.cat([y for _, y in batches])


train_x, train_y = unit_features("train", 200)
test_x, test_y = unit_features("test", 10**9)
hits = 0
for x, y in zip(test_x, test_y):
    s = train_x @ x
    votes = torch.zeros(10)
    for j in s.argsort(descending=True)[:200]:
        votes[train_y[j]] += torch.exp(s[j] / 0.1)
    hits += int(votes.argmax() == y)
reported = next(iter(json.load(open(f"{run}/result.json"))["knn"].values()))["accuracy"]
print(f"by hand {hits / len(test_y)}, reported {reported}")
