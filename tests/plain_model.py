"""What a FractalBrainNet computes, one step a line and nothing merged: the reference for every fast path.

`plain_forward(net, images)` reads the net's own modules and so has its parameters, statistics and random draws; it
calls no forward of a part that `fbsearch.network` has written, only torch's. Its outputs equal those of the public
reference `FractalBrainNet-v2.py`. Suffixes as in the model's file.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbsearch.network.blocks import (
    AdaptiveScaleProcessor,
    CerebralDynamicsModule,
    FractalMask,
    FractalNeuralBlock,
    draw_local_factors,
)
from fbsearch.network.model import COARSE_SIDE, FractalBrainNet


def plain_forward(net: FractalBrainNet, x_BCHW: Tensor) -> Tensor:
    """The net's logits [B, K]; in training it draws from torch's generator in the order that the net does."""
    columns_B = net._draw_columns(x_BCHW)
    x_BCHW = apply(net.stem, x_BCHW)
    for stage in net.fractal_stages:
        block, *others = stage
        x_BCHW = apply(others, plain_block(block, x_BCHW, columns_B))
    return plain_head(net, x_BCHW)


def apply(parts: list[nn.Module] | nn.Sequential, x_BCHW: Tensor) -> Tensor:
    """One module after the other; a Sequential is opened, so that only torch's own forwards are called."""
    plain = {AdaptiveScaleProcessor: plain_scales, CerebralDynamicsModule: plain_dynamics}
    for part in parts:
        if isinstance(part, nn.Sequential):
            x_BCHW = apply(part, x_BCHW)
        else:
            x_BCHW = plain[type(part)](part, x_BCHW) if type(part) in plain else part(x_BCHW)
    return x_BCHW


def plain_masks(mask: FractalMask, like_BCHW: Tensor) -> list[Tensor]:
    """The four bands' masks, each [H, W]."""
    if mask.is_absent:
        return [like_BCHW.new_ones(like_BCHW.shape[-2:])] * 4
    m_HW = F.interpolate(
        mask.pattern_HW[None, None], size=like_BCHW.shape[-2:], mode="bilinear", align_corners=False
    )[0, 0]  # fmt: skip
    return [one.to(like_BCHW.dtype) for one in (m_HW, 1 - m_HW, m_HW * 0.5, torch.sin(math.pi * m_HW))]


def plain_dynamics(module: CerebralDynamicsModule | nn.Identity, x_BCHW: Tensor) -> Tensor:
    if isinstance(module, nn.Identity):
        return x_BCHW
    alpha, beta = module.alpha_processing(x_BCHW), module.beta_processing(x_BCHW)
    gamma, theta = module.gamma_processing(x_BCHW), module.theta_processing(x_BCHW)
    m, inverse, half, sine = plain_masks(module.mask, alpha)
    bands_BCHW = torch.cat([alpha * m, beta * inverse, gamma * half, theta * sine], dim=1)
    integrated_BHWC = module.integration(bands_BCHW).permute(0, 2, 3, 1)
    return module.normalization(integrated_BHWC).permute(0, 3, 1, 2) + x_BCHW


def plain_block(block: FractalNeuralBlock, x_BCHW: Tensor, columns_B: Tensor | None = None) -> Tensor:
    if block.level == 1:
        out_BCHW = block.activation(
            plain_dynamics(block.cerebral_dynamics, block.norm(block.pool(block.base_conv(x_BCHW))))
        )
    else:
        deep_BCHW = x_BCHW
        for inner in block.deep_branch:
            deep_BCHW = plain_block(inner, deep_BCHW, None if columns_B is None else columns_B - 1)
        convolution, dynamics, norm, activation = block.shallow_branch
        shallow_BCHW = convolution(x_BCHW)
        if isinstance(dynamics, nn.Sequential):
            pool, dynamics = dynamics
            shallow_BCHW = pool(shallow_BCHW)
        shallow_BCHW = activation(norm(plain_dynamics(dynamics, shallow_BCHW)))
        out_BCHW = plain_join(block, deep_BCHW, shallow_BCHW, columns_B)
    return block.drop_path(out_BCHW)


def plain_join(block: FractalNeuralBlock, deep_BCHW: Tensor, shallow_BCHW: Tensor, columns_B: Tensor | None) -> Tensor:
    if block.fractal_attention is None:
        return plain_mean(block, deep_BCHW, shallow_BCHW, columns_B)
    gates_B2HW = block.fractal_attention(torch.cat([deep_BCHW, shallow_BCHW], dim=1))
    if block.training and block.local_prob:
        factors_B2 = draw_local_factors(len(gates_B2HW), block.local_prob, gates_B2HW.device)
        gates_B2HW = gates_B2HW * factors_B2.to(gates_B2HW.dtype)[:, :, None, None]
    if columns_B is not None:
        lone_B2 = torch.stack([columns_B > 1, columns_B == 1], dim=1).to(gates_B2HW.dtype)
        gates_B2HW = torch.where((columns_B > 0)[:, None, None, None], lone_B2[:, :, None, None], gates_B2HW)
    return gates_B2HW[:, :1] * deep_BCHW + gates_B2HW[:, 1:] * shallow_BCHW


def plain_mean(block: FractalNeuralBlock, deep_BCHW: Tensor, shallow_BCHW: Tensor, columns_B: Tensor | None) -> Tensor:
    """FractalNet's join: of each sample the mean of the branches that survive."""
    kept_B2 = torch.ones(len(deep_BCHW), 2, dtype=torch.bool)
    if block.training and block.local_prob:
        kept_B2 = draw_local_factors(len(deep_BCHW), block.local_prob, deep_BCHW.device) > 0
    joined = []
    for b, (deep_CHW, shallow_CHW) in enumerate(zip(deep_BCHW, shallow_BCHW, strict=True)):
        kept = kept_B2[b].tolist()
        if columns_B is not None and columns_B[b] > 0:
            kept = [bool(columns_B[b] > 1), bool(columns_B[b] == 1)]
        joined.append(sum(part for part, keep in zip((deep_CHW, shallow_CHW), kept, strict=True) if keep) / sum(kept))
    return torch.stack(joined)


def plain_scales(module: AdaptiveScaleProcessor, x_BCHW: Tensor) -> Tensor:
    processors = [module.local_processor, module.regional_processor, module.global_processor]
    return apply(module.scale_fusion, torch.cat([process(x_BCHW) for process in processors], dim=1)) + x_BCHW


def plain_head(net: FractalBrainNet, x_BCHW: Tensor) -> Tensor:
    tokens_BNC = x_BCHW.flatten(2).transpose(1, 2)
    if net.config.global_attention == "pooled":
        tokens_BNC = tokens_BNC.mean(dim=1, keepdim=True)
    if net.config.global_attention == "coarse" and max(x_BCHW.shape[2:]) > COARSE_SIDE:
        cell = math.ceil(max(x_BCHW.shape[2:]) / COARSE_SIDE)
        pooled_BCHW = F.avg_pool2d(x_BCHW, cell, ceil_mode=True, count_include_pad=False)
        tokens_BNC = pooled_BCHW.flatten(2).transpose(1, 2)
    if net.global_attention is not None:
        tokens_BNC, _ = net.global_attention(tokens_BNC, tokens_BNC, tokens_BNC, need_weights=False)
    features_BC = tokens_BNC.mean(dim=1)
    if net.meta_learner is not None:
        features_BC = features_BC + 0.1 * net.meta_learner(features_BC)
    return net.classifier(features_BC)
