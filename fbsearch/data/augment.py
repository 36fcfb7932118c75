"""Augmentation of training images, a whole batch at once on its device, with random draws for each image.

Shapes: B images of a batch, C channels, H height, W width.
"""

import math

import torch
import torch.nn.functional as F

from fbsearch.config.models import AugmentConfig

# Of random erasing's rectangle (Zhong et al., 2017): the share of the image's area, and the ratio of height to width.
ERASED_SHARE = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)
# The weights of red, green and blue in grey, of ITU-R BT.601, as Pillow and torchvision take them.
GREY_WEIGHTS = (0.299, 0.587, 0.114)


def augment(images_BCHW: torch.Tensor, config: AugmentConfig, *, generator: torch.Generator) -> torch.Tensor:
    """Change each image by random draws of its own; uint8 [B, C, H, W] in and out (channels_last).

    Flip: left-right with probability 1/2. Shift: uniformly by up to `shift` pixels along each axis; the image is
    reflected at its edge (the edge row itself not repeated), here and wherever it is moved. Rotation and scale: about
    the centre, by an angle and a factor drawn uniformly; pixels are interpolated linearly. Colour: brightness, contrast
    and saturation, each times a factor drawn uniformly. Cutout: a square of side `cutout` around a uniformly drawn
    centre, clipped at the edges (DeVries and Taylor, 2017, arXiv:1708.04552). Erasing: with probability `erasing` a
    rectangle of random area and sides, wholly within the image (Zhong et al., 2017, arXiv:1708.04896). Both are filled
    with the image's mean colour. `mixing.mix` does mixup and cutmix.

    Images and generator must be on the same device, for which this never waits. With everything off, return the same
    tensor and draw nothing.
    """
    if config.rotation or config.scale:
        images_BCHW = _warp_at_random(images_BCHW, config, generator=generator)
    elif config.flip or config.shift:
        images_BCHW = _flip_and_shift(images_BCHW, config, generator=generator)
    if config.colour:
        factors_3B = 1 + config.colour * _draw_signed(3, len(images_BCHW), generator=generator)
        images_BCHW = change_colour(images_BCHW, *factors_3B)
    if config.cutout:
        images_BCHW = _cut_out(images_BCHW, config.cutout, generator=generator)
    if config.erasing:
        images_BCHW = _erase(images_BCHW, config.erasing, generator=generator)
    return images_BCHW


def warp(
    images_BCHW: torch.Tensor,
    *,
    degrees_B: torch.Tensor,
    factor_B: torch.Tensor,
    flip_B: torch.Tensor,
    shift_2B: torch.Tensor,
) -> torch.Tensor:
    """Flip, shift, rotate anticlockwise and enlarge each uint8 image about its centre, in one bilinear resampling.

    `flip_B` is bool, `shift_2B` the pixels down and right by which the view of the flipped image moves.
    """
    height, width = images_BCHW.shape[2:]
    # Distances from the centre in pixels, of a place in the result and then of its source. Not by `affine_grid`: it
    # multiplies matrices, which may be rounded to TF32 on a GPU.
    y_H1 = (torch.arange(height, device=images_BCHW.device) - (height - 1) / 2)[:, None]
    x_W = torch.arange(width, device=images_BCHW.device) - (width - 1) / 2
    radians_B = degrees_B * (math.pi / 180)
    cos_B11, sin_B11 = ((f(radians_B) / factor_B)[:, None, None] for f in (torch.cos, torch.sin))
    sign_B11 = torch.where(flip_B, -1.0, 1.0)[:, None, None]
    down_B11, right_B11 = shift_2B[:, :, None, None]
    source_y_BHW = sin_B11 * x_W + cos_B11 * y_H1 + down_B11
    source_x_BHW = sign_B11 * (cos_B11 * x_W - sin_B11 * y_H1) + right_B11
    # grid_sample counts from -1 to 1 between the centres of the outer pixels.
    places_BHW2 = torch.stack([source_x_BHW * (2 / max(1, width - 1)), source_y_BHW * (2 / max(1, height - 1))], dim=-1)
    x_BCHW = F.grid_sample(
        images_BCHW.to(torch.float32), places_BHW2, mode="bilinear", padding_mode="reflection", align_corners=True
    )
    return _to_bytes(x_BCHW)


def change_colour(
    images_BCHW: torch.Tensor, brightness_B: torch.Tensor, contrast_B: torch.Tensor, saturation_B: torch.Tensor
) -> torch.Tensor:
    """Multiply brightness, then contrast about the mean grey, then saturation of each uint8 image, clipped at the end.

    1 leaves things as they are. Saturation does nothing to grey images, of one channel.
    """
    x_BCHW = images_BCHW.to(torch.float32)
    brightness_B111, contrast_B111, saturation_B111 = (
        factor_B[:, None, None, None] for factor_B in (brightness_B, contrast_B, saturation_B)
    )
    grey_B1HW = x_BCHW
    if x_BCHW.shape[1] == 3:
        red, green, blue = GREY_WEIGHTS
        grey_B1HW = red * x_BCHW[:, 0:1] + green * x_BCHW[:, 1:2] + blue * x_BCHW[:, 2:3]
    mean_B111 = grey_B1HW.mean((2, 3), keepdim=True) * (brightness_B111 * (1 - contrast_B111))
    factor_B111 = brightness_B111 * contrast_B111
    if x_BCHW.shape[1] == 1:
        return _to_bytes(x_BCHW.mul_(factor_B111).add_(mean_B111))
    rest_B1HW = grey_B1HW.mul_(factor_B111 * (1 - saturation_B111)).add_(mean_B111)
    return _to_bytes(x_BCHW.mul_(factor_B111 * saturation_B111).add_(rest_B1HW))


def _to_bytes(x_BCHW: torch.Tensor) -> torch.Tensor:
    return x_BCHW.round_().clamp_(0, 255).to(torch.uint8, memory_format=torch.channels_last)


def _draw_signed(*size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw numbers uniformly from [-1, 1)."""
    return 2 * torch.rand(size, generator=generator, device=generator.device) - 1


def _warp_at_random(images_BCHW: torch.Tensor, config: AugmentConfig, *, generator: torch.Generator) -> torch.Tensor:
    num_images, device = len(images_BCHW), images_BCHW.device
    turn_B, growth_B = _draw_signed(2, num_images, generator=generator)
    flip_B = torch.rand(num_images, generator=generator, device=device) < (0.5 if config.flip else 0.0)
    size = (2, num_images)
    return warp(
        images_BCHW,
        degrees_B=config.rotation * turn_B,
        factor_B=1 + config.scale * growth_B,
        flip_B=flip_B,
        shift_2B=torch.randint(-config.shift, config.shift + 1, size, generator=generator, device=device),
    )


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
    corner_2B = torch.rand(2, num_images, 1, generator=generator, device=images_BCHW.device)[:, :, 0]
    top_B = (corner_2B[0] * height).long() - side // 2
    left_B = (corner_2B[1] * width).long() - side // 2
    hole_B1HW = rectangles((height, width), top_B=top_B, left_B=left_B, height_B=side, width_B=side)
    return torch.where(hole_B1HW, _mean_colour(images_BCHW), images_BCHW)


def _erase(images_BCHW: torch.Tensor, probability: float, *, generator: torch.Generator) -> torch.Tensor:
    num_images, _, height, width = images_BCHW.shape
    size = (5, num_images)
    chance_B, area_B, ratio_B, y_B, x_B = torch.rand(size, generator=generator, device=images_BCHW.device)
    pixels_B = (ERASED_SHARE[0] + area_B * (ERASED_SHARE[1] - ERASED_SHARE[0])) * (height * width)
    low, high = map(math.log, ERASED_RATIO)
    root_B = torch.exp((low + ratio_B * (high - low)) / 2)
    height_B = (pixels_B.sqrt() * root_B).round().long().clamp(1, height)
    width_B = (pixels_B.sqrt() / root_B).round().long().clamp(1, width)
    hole_B1HW = rectangles(
        (height, width),
        top_B=(y_B * (height - height_B + 1)).long(),
        left_B=(x_B * (width - width_B + 1)).long(),
        height_B=height_B,
        width_B=width_B,
    )
    hole_B1HW &= (chance_B < probability)[:, None, None, None]
    return torch.where(hole_B1HW, _mean_colour(images_BCHW), images_BCHW)


def rectangles(
    size: tuple[int, int],
    *,
    top_B: torch.Tensor,
    left_B: torch.Tensor,
    height_B: torch.Tensor | int,
    width_B: torch.Tensor | int,
) -> torch.Tensor:
    """Return masks [B, 1, H, W] of images of `size` (H, W), true in a rectangle of each, which is clipped to it."""
    rows_H, columns_W = (torch.arange(length, device=top_B.device) for length in size)
    in_rows_BH = (rows_H >= top_B[:, None]) & (rows_H < (top_B + height_B)[:, None])
    in_columns_BW = (columns_W >= left_B[:, None]) & (columns_W < (left_B + width_B)[:, None])
    return (in_rows_BH[:, :, None] & in_columns_BW[:, None, :])[:, None]


def _mean_colour(images_BCHW: torch.Tensor) -> torch.Tensor:
    return images_BCHW.mean((2, 3), keepdim=True, dtype=torch.float32).round().to(torch.uint8)
