"""What a frozen extractor makes of each image: the same in every epoch, so taken once."""

import torch

from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.models.pieces import in_pieces

ROOM = 2 * 2**30
"""Bytes that features may take: a number, so that a run that goes on takes the same way."""


@torch.no_grad()
def extracted(
    model: BlockModel, k: int, split: Split, batch_size: int, device: torch.device
) -> Split | None:
    """``split`` with what leaves block L−k, (N, …), in the place of its images, on the device.

    In the precision of the caller's autocast and in batches as in training. None if there is no
    room for it.
    """
    cut, stored = len(model.blocks) - k, None
    try:
        for number, images in enumerate(split.batches(batch_size)):
            pixels = to_pixels(images.to(device)).to(memory_format=torch.channels_last)
            features = in_pieces(lambda some: model.features(some, cut), pixels)
            if stored is None:
                if len(split) * features[0].numel() * features.element_size() > ROOM:
                    return None
                stored = features.new_empty((len(split), *features.shape[1:]))
                if features.dim() == 4:
                    stored = stored.to(memory_format=torch.channels_last)
            stored[number * batch_size : number * batch_size + len(features)] = features
    except torch.OutOfMemoryError:
        return None
    assert stored is not None
    return Split(stored, split.labels.to(device))
