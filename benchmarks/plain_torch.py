"""The plain torch script that `mobilenet train` is measured against: the same network, data and time, nothing clever.

What a good engineer writes in half an hour: photos decoded once into memory, random crop and flip, SGD with Nesterov
momentum, cosine schedule, weight decay, float32. Timed from its first step, the decoding given free. Run:

    python benchmarks/plain_torch.py CIFAR10 --minutes 30 --threads 2 --out plain.jsonl
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def width(channels: float) -> int:
    new = max(8, int(channels + 4) // 8 * 8)
    return new + 8 if new < 0.9 * channels else new


def convolution(
    ins: int, outs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outs),
    ]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if act else nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = ins * expansion
        self.shortcut = stride == 1 and ins == outs
        expand = [convolution(ins, hidden)] if expansion > 1 else []
        self.body = nn.Sequential(
            *expand, convolution(hidden, hidden, 3, stride, hidden), convolution(hidden, outs, act=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


def mobilenet_v2(alpha: float, classes: int, flattened: int) -> nn.Sequential:
    """V2 whose first `flattened` strided layers keep the resolution, as small photos need."""
    strides_left = flattened

    def stride_of(table: int) -> int:
        nonlocal strides_left
        if table == 2 and strides_left:
            strides_left -= 1
            return 1
        return table

    ins = width(32 * alpha)
    layers: list[nn.Module] = [convolution(3, ins, 3, stride_of(2))]
    for expansion, channels, repeats, stride in TABLE:
        for n in range(repeats):
            layers.append(InvertedResidual(ins, width(channels * alpha), stride_of(stride) if n == 0 else 1, expansion))
            ins = width(channels * alpha)
    layers += [convolution(ins, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, classes)]
    return nn.Sequential(*layers)


def read(folder: Path) -> tuple[Tensor, Tensor]:
    paths = sorted(folder.glob("*/*"))
    names = sorted({path.parent.name for path in paths})
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    labels = torch.tensor([names.index(path.parent.name) for path in paths])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), labels


def augmented(x: Tensor) -> Tensor:
    padded = F.pad(x, (4, 4, 4, 4))
    out = torch.empty_like(x)
    for i in range(len(x)):
        top, left = torch.randint(0, 9, (2,)).tolist()
        crop = padded[i, :, top : top + 32, left : left + 32]
        out[i] = crop.flip(2) if torch.rand(()) < 0.5 else crop
    return out


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    hits = sum(int((model(x[i : i + 500]).argmax(1) == y[i : i + 500]).sum()) for i in range(0, len(x), 500))
    model.train()
    return hits / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/ and test/, a folder a class in each")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--epochs", type=int, help="instead of as many as fit into the minutes")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--flattened", type=int, default=2, help="strided layers that keep the resolution")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines: seconds, epoch, test accuracy")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x, y = read(args.data / "train")
    test_x, test_y = read(args.data / "test")
    model = mobilenet_v2(args.alpha, int(y.max()) + 1, args.flattened)
    optimiser = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    per_epoch = len(x) // args.batch
    start, step, total = time.monotonic(), 0, (args.epochs or 0) * per_epoch
    lines = []
    while not total or step < total:
        order = torch.randperm(len(x))
        for i in range(per_epoch):
            if step == 30 and not total:  # the schedule needs an end: as many whole epochs as the time allows
                per_step = (time.monotonic() - start) / 30
                total = max(1, int(args.minutes * 60 * 0.97 / per_step / per_epoch)) * per_epoch
            done = step / total if total else 0.0
            for group in optimiser.param_groups:
                group["lr"] = args.lr * 0.5 * (1 + np.cos(np.pi * done))
            chosen = order[i * args.batch : (i + 1) * args.batch]
            loss = F.cross_entropy(model(augmented(x[chosen])), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
        line = {"seconds": round(time.monotonic() - start, 1), "epoch": step // per_epoch, "of": total // per_epoch}
        lines.append(line | {"test_top1": accuracy(model, test_x, test_y), "train_loss": float(loss.detach())})
        args.out.write_text("".join(json.dumps(item) + "\n" for item in lines))
        print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
