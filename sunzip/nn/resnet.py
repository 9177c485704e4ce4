"""ResNet-18 up to its last but one layer, the paper's rival in extracting features; with torchvision's names.

It is written out because torchvision is built for one build of PyTorch each, and because its weights are all
that is needed of it: 512 numbers for an image.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

#: Numbers that it gives for an image.
FEATURES = 512


class _Block(nn.Module):
    def __init__(self, wide: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, wider, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wider)
        self.downsample = (
            nn.Sequential(nn.Conv2d(wide, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))
            if stride > 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add two convolutions to what comes in."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """The 18-layer residual network of He et al. 2016, "Deep residual learning for image recognition"."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        wide = 64
        for n, wider in enumerate((64, 128, 256, FEATURES), start=1):
            stride = 1 if n == 1 else 2
            layer = nn.Sequential(_Block(wide, wider, stride), _Block(wider, wider, 1))
            setattr(self, f"layer{n}", layer)
            wide = wider

    def forward(self, x: Tensor) -> Tensor:
        """Turn (N, 3, Y, X) into (N, 512)."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for n in range(1, 5):
            x = getattr(self, f"layer{n}")(x)
        return x.mean((2, 3))


def with_weights(arrays: Mapping[str, Tensor]) -> ResNet18:
    """Return the network with weights under torchvision's names, ready for use; those of ``fc`` are left out.

    Raises
    ------
    ValueError
        If they are not this network's; the message names one.
    """
    with torch.device("meta"):
        network = ResNet18()
    expected = network.state_dict()
    given = {name: value for name, value in arrays.items() if not name.startswith("fc.")}
    wrong = [
        name
        for name in expected.keys() | given.keys()
        if name not in given or name not in expected or given[name].shape != expected[name].shape
    ]
    # Old files do not count batches.
    wrong = [name for name in wrong if not (name.endswith("num_batches_tracked") and name not in given)]
    if wrong:
        raise ValueError(f"{min(wrong)} is missing, unknown or of another shape")
    state = {
        n: given[n].to(v.dtype) if n in given else torch.zeros_like(v, device="cpu")
        for n, v in expected.items()
    }
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)
