"""Train the network of bn.py with a standard script, for comparison: `python -m tools.baseline`.

Images are augmented one at a time by torchvision and collected by a DataLoader. The network is trained by SGD in
PyTorch's defaults: contiguous layout, float32. It runs on the CPU. tools/bench.py imports the parts and times them.
"""

import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import common
from support import cifar10, runs

BATCH_SIZE, EPOCHS = 128, 20
NORMALIZE = transforms.Compose([transforms.ToTensor(), transforms.Normalize(common.MEAN, common.STD)])
AUGMENT = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), NORMALIZE])


class PILImages(Dataset):
    """Pairs of a transformed PIL image and its label, as torchvision.datasets.CIFAR10 returns them."""

    def __init__(self, images, targets, transform):
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()  # uint8 (N, 32, 32, 3)
        self.targets, self.transform = targets.tolist(), transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


def build_loaders(workers):
    """Return the DataLoaders of our training images, augmented and shuffled, and of our validation images."""
    images, targets = cifar10.load("train")
    train, val = common.split_indices(targets)
    train_set = PILImages(images[train], targets[train], AUGMENT)
    val_set = PILImages(images[val], targets[val], NORMALIZE)
    return (DataLoader(train_set, BATCH_SIZE, shuffle=True, num_workers=workers),
            DataLoader(val_set, BATCH_SIZE, num_workers=workers))


def build_optimizer(model):
    """Return SGD with the usual values for CIFAR-10."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def train(model, batches, optimizer):
    """Train on each batch once; return the mean loss over the steps."""
    model.train()
    losses = []
    for images, targets in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def evaluate(model, batches):
    """Return the accuracy, in [0, 1]."""
    model.eval()
    correct = count = 0
    for images, targets in batches:
        correct += (model(images).argmax(1) == targets).sum().item()
        count += len(targets)
    return correct / count


def main():
    """Train for EPOCHS, and print loss, accuracy and time after each."""
    torch.manual_seed(0)
    train_loader, val_loader = build_loaders(workers=2)
    model = common.build_model(runs.load_script("bn"))
    optimizer = build_optimizer(model)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [EPOCHS // 2, EPOCHS * 3 // 4], gamma=0.1)
    start = time.perf_counter()
    for epoch in range(1, EPOCHS + 1):
        loss = train(model, train_loader, optimizer)
        accuracy = evaluate(model, val_loader)
        scheduler.step()
        print(f"epoch {epoch:2d}: training loss {loss:.4f}, validation accuracy {accuracy:.2%}, "
              f"{time.perf_counter() - start:.0f} s since the start", flush=True)


if __name__ == "__main__":
    main()
