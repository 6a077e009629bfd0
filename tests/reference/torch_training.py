"""K twins trained and grafted by a plain PyTorch loop: `torch.optim.SGD`, METHOD.md's formula."""

import numpy as np
import torch
from torch import nn

from tests.reference.grafting import alpha, authors_entropy


def train(twins, epochs, *, rates, momentum, l2, drop_every, grafts, nesterov=False):
    """Train in place, epoch by epoch; yields each epoch's running mean losses, `(K, steps)`.

    `epochs[e][k]` are the batches of peer k in epoch e, NumPy images `(n, h, w, c)` and labels. The
    first `grafts` epochs end with a grafting, which is done when the losses are yielded.
    """
    optimizers = [
        torch.optim.SGD(
            twin.parameters(), lr=rate, momentum=momentum, weight_decay=l2, nesterov=nesterov
        )
        for twin, rate in zip(twins, rates, strict=True)
    ]
    schedules = [torch.optim.lr_scheduler.StepLR(o, drop_every, 0.1) for o in optimizers]
    criterion = nn.CrossEntropyLoss()
    for number, batches in enumerate(epochs):
        losses = []
        for twin, optimizer, own in zip(twins, optimizers, batches, strict=True):
            twin.train()
            losses.append([])
            for x, y in own:
                dtype = next(twin.parameters()).dtype
                images = torch.from_numpy(x).permute(0, 3, 1, 2).to(dtype)
                optimizer.zero_grad()
                loss = criterion(twin(images), torch.from_numpy(y))
                loss.backward()
                optimizer.step()
                losses[-1].append((loss.item() * len(y), len(y)))
        for schedule in schedules:
            schedule.step()
        if number < grafts:
            graft(twins)
        totals = np.cumsum(np.array(losses), axis=1)
        yield totals[..., 0] / totals[..., 1]


def graft(twins, decimals=2):
    """The ring, all at once, with the authors' binning and rounding; one alpha a convolution."""
    before = [{k: v.clone() for k, v in twin.state_dict().items()} for twin in twins]
    for k, twin in enumerate(twins):
        own, donor = before[k], before[k - 1]
        share = None
        after = {}
        for name, part in twin.named_modules():
            if isinstance(part, nn.Conv2d):
                kernels = (weights[f"{name}.weight"].numpy() for weights in (own, donor))
                share = round(alpha(*map(authors_entropy, kernels)), decimals)
            for key in [*part._parameters, *part._buffers]:
                full = f"{name}.{key}"
                if own.get(full) is not None and own[full].is_floating_point():
                    after[full] = share * own[full] + (1 - share) * donor[full]
        twin.load_state_dict(after, strict=False)


def torch_batches(images, labels, order, draws, batch_size, mean, std, pad):
    """RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, a DataLoader's order: as torchvision
    does it, one image at a time, with torch's own operations; yields NumPy `(n, h, w, c)`.
    """
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (mean, std))
    for start, draw in zip(range(0, len(order), batch_size), draws, strict=True):
        batch = []
        for place, index in enumerate(order[start : start + batch_size]):
            image = torch.from_numpy(images[index]).permute(2, 0, 1)
            image = torch.nn.functional.pad(image, (pad, pad, pad, pad))
            row, column = int(draw.rows[place]), int(draw.columns[place])
            image = image[:, row : row + images.shape[1], column : column + images.shape[2]]
            image = image.flip(-1) if draw.flips[place] else image
            batch.append(image.to(torch.float32).div(255).sub(mean).div(std))
        chosen = labels[order[start : start + batch_size]]
        yield torch.stack(batch).permute(0, 2, 3, 1).numpy(), chosen
