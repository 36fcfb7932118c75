"""Augmentation of training images: random flips, shifts and cutout, a whole batch at once on its device.

Shapes: B images of a batch, C channels, H height, W width.
"""

import torch

from fbsearch.config.models import AugmentConfig


def augment(images_BCHW: torch.Tensor, config: AugmentConfig, *, generator: torch.Generator) -> torch.Tensor:
    """Change each image by random draws of its own; uint8 [B, C, H, W] in and out (channels_last).

    Flip: left-right with probability 1/2. Shift: uniformly by up to `shift` pixels along each axis; the image is
    reflected at its edge (the edge row itself not repeated). Cutout: a square of side `cutout` around a uniformly drawn
    centre, clipped at the edges (DeVries and Taylor, 2017, arXiv:1708.04552), filled with the image's mean colour
    instead of the data set's. Images and generator must be on the same device, for which this never waits. With
    everything off, return the same tensor and draw nothing.
    """
    if config.flip or config.shift:
        images_BCHW = _flip_and_shift(images_BCHW, config, generator=generator)
    if config.cutout:
        images_BCHW = _cut_out(images_BCHW, config.cutout, generator=generator)
    return images_BCHW


def _flip_and_shift(images_BCHW: torch.Tensor, config: AugmentConfig, *, generator: torch.Generator) -> torch.Tensor:
    num_images, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    rows_BH = torch.arange(height, device=device).expand(num_images, height)
    columns_BW = torch.arange(width, device=device).expand(num_images, width)
    if config.flip:
        flip_B1 = torch.rand(num_images, 1, generator=generator, device=device) < 0.5
        columns_BW = torch.where(flip_B1, width - 1 - columns_BW, columns_BW)
    if config.shift:
        size = (2, num_images, 1)
        down_B1, right_B1 = torch.randint(-config.shift, config.shift + 1, size, generator=generator, device=device)
        rows_BH = _reflect(rows_BH + down_B1, height)
        columns_BW = _reflect(columns_BW + right_B1, width)
    image_B11 = torch.arange(num_images, device=device).view(-1, 1, 1)
    images_BHWC = images_BCHW.permute(0, 2, 3, 1)
    return images_BHWC[image_B11, rows_BH[:, :, None], columns_BW[:, None, :]].permute(0, 3, 1, 2)


def _reflect(places: torch.Tensor, length: int) -> torch.Tensor:
    """Map places beyond the edges to 0 ... length - 1 by reflection."""
    period = max(1, 2 * (length - 1))
    places = places.remainder(period)
    return torch.minimum(places, period - places) if length > 1 else places


def _cut_out(images_BCHW: torch.Tensor, side: int, *, generator: torch.Generator) -> torch.Tensor:
    num_images, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    corner_2B1 = torch.rand(2, num_images, 1, generator=generator, device=device)
    top_B1 = (corner_2B1[0] * height).long() - side // 2
    left_B1 = (corner_2B1[1] * width).long() - side // 2
    rows_H, columns_W = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows_BH = (rows_H >= top_B1) & (rows_H < top_B1 + side)
    in_columns_BW = (columns_W >= left_B1) & (columns_W < left_B1 + side)
    hole_B1HW = (in_rows_BH[:, :, None] & in_columns_BW[:, None, :])[:, None]
    fill_BC11 = images_BCHW.mean((2, 3), keepdim=True, dtype=torch.float32).round().to(torch.uint8)
    return torch.where(hole_B1HW, fill_BC11, images_BCHW)
