"""Compute the attention maps of a trained network on a few validation images, as small plain data.

A worker does this at the end of a trial, because a search stores no weights.

Shapes: N images, C channels, H height, W width, h height and w width of a map.
"""

import base64

import torch
import torch.nn.functional as F
from torch import Tensor

from fbsearch.data.dataset import Dataset, evenly_spaced_rows
from fbsearch.messages import Attention, Pixels
from fbsearch.network.model import FractalBrainNet

NUM_IMAGES = 4
MAX_SIDE = 32


@torch.inference_mode()
def take_attention(net: FractalBrainNet, data: Dataset) -> Attention:
    """Return the maps of NUM_IMAGES validation images, from one forward pass. `net` is left in eval mode."""
    rows_N = evenly_spaced_rows(len(data.val.labels_N), NUM_IMAGES)
    images_NCHW, labels_N = (values[rows_N.to(values.device)] for values in (data.val.images_NCHW, data.val.labels_N))
    images_NCHW = images_NCHW.to(data.device)
    logits_NK, maps = net.eval()(data.normalise(images_NCHW), return_attention_maps=True)
    shares_N, said_N = logits_NK.float().softmax(dim=1).max(dim=1)
    return Attention(
        images=_pixels(_shrink(images_NCHW.float()).permute(0, 2, 3, 1)),
        stages=tuple(_pixels(_stretch(_shrink(map_N1hw.float())).squeeze(1)) for map_N1hw in maps),
        labels=tuple(labels_N.tolist()),
        said=tuple(said_N.tolist()),
        shares=tuple(round(share, 4) for share in shares_N.tolist()),
    )


def _shrink(x_NCHW: Tensor) -> Tensor:
    """Reduce height and width to at most MAX_SIDE; a pixel is the mean of those that it replaces."""
    height, width = x_NCHW.shape[-2:]
    return F.adaptive_avg_pool2d(x_NCHW, (min(height, MAX_SIDE), min(width, MAX_SIDE)))


def _stretch(maps_N1hw: Tensor) -> Tensor:
    """Scale each map from 0, its lowest value, to 255, its highest. A constant map becomes 0."""
    low, high = maps_N1hw.amin(dim=(1, 2, 3), keepdim=True), maps_N1hw.amax(dim=(1, 2, 3), keepdim=True)
    return 255 * (maps_N1hw - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)


def _pixels(x: Tensor) -> Pixels:
    values = x.round().to(torch.uint8).cpu().contiguous().numpy()
    return Pixels(tuple(values.shape), base64.b64encode(values.tobytes()).decode())
