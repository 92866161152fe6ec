"""Random maps and objects for the tests of dense heads."""

import torch

from vitgraft.features import Features

CHANNELS = (8, 12, 16, 24)
CLASSES = 3
HST, HST_SIDE = (64, 128, 256, 384), 10_404_096  # widths of HST's dense maps, parameters of its dense side network


def features(size=(64, 96), *, batch=2, sizes=None, channels=CHANNELS, seed=0, dtype=torch.float32):
    """Random maps at strides 4, 8, 16, 32, or one of stride 16."""
    generator = torch.Generator().manual_seed(seed)
    strides = (4, 8, 16, 32) if len(channels) > 1 else (16,)
    maps: list[tuple[float, torch.Tensor]] = []
    for C, stride in zip(channels, strides, strict=True):
        h, w = size[0] // stride, size[1] // stride
        maps.append((stride, torch.randn(batch, C, h, w, generator=generator, dtype=dtype)))
    pooled = torch.randn(batch, channels[-1], generator=generator, dtype=dtype)
    return Features(pooled, maps, size, list(sizes or []))


def one_of(given, i):
    """The features of picture i alone."""
    maps = [(stride, x[i : i + 1]) for stride, x in given.maps]
    return Features(given.pooled[i : i + 1], maps, given.size, [given.inside[i]])


def objects(given, counts=(2, 1), *, masks=True, seed=0):
    """Boxes inside each picture, at least a third of it in each direction, and masks that fill about half of them."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for (h, w), n in zip(given.inside, counts, strict=True):
        near, span = torch.rand(2, n, 2, generator=generator)
        limit = torch.tensor([w, h])
        start = near * limit / 2
        boxes = torch.cat([start, start + (span * 0.6 + 0.4) * (limit - start)], dim=1)
        target = {"boxes": boxes, "labels": torch.randint(CLASSES, (n,), generator=generator)}
        if masks:
            y, x = torch.meshgrid(torch.arange(given.size[0]), torch.arange(given.size[1]), indexing="ij")
            x1, y1, x2, y2 = (side[:, None, None] for side in boxes.T)
            inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
            target["masks"] = (inside & ((x - x1) / (x2 - x1) > (y - y1) / (y2 - y1))).byte()
        targets.append(target)
    return targets


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def made(cls, *arguments, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(*arguments, **options)


def shaken(module, seed=1):
    """The module with every tensor random, running statistics included, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    return module


def check_gradients(module, losses):
    """The losses are finite, and every parameter gets a gradient that is not all zero."""
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
