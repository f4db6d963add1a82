"""The image generators of Fast DFKD and DFAD, with the published layer names and initialization.

A generator maps latents to pixels in [0, 1] and is always used in training mode: its BatchNorm layers
normalize with the batch at hand, and the running statistics that they keep mean nothing. All upsample
from a coarse grid by a power of two; for a size that is no multiple of it, the next larger grid is
generated and the centre is cut out.

Layer names and shapes are those of Fang et al.'s implementation, so that its generators load.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from shared.specs import GeneratorName


class Generator(nn.Module, ABC):
    """Latents (N, *latent_shape) to pixels (N, channels, height, width) in [0, 1].

    Args:
        latent_dim: length of a latent vector, or channels of a spatial latent.
        width: channels of the last hidden layer.
        image_shape: (channels, height, width); any sizes.
    """

    UPSAMPLING: int
    """Image pixels per cell of the coarsest grid, along each side."""

    def __init__(self, latent_dim: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.width = width
        self.image_shape = image_shape
        self.grid = (math.ceil(image_shape[1] / self.UPSAMPLING), math.ceil(image_shape[2] / self.UPSAMPLING))

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latent."""

    @property
    @abstractmethod
    def first_layer(self) -> nn.Linear | nn.Conv2d:
        """The layer that takes the latents."""

    @abstractmethod
    def _coarse(self, latents: Tensor) -> Tensor:
        """What enters the convolutional blocks: (N, features, *grid)."""

    @abstractmethod
    def _blocks(self, coarse: Tensor) -> Tensor:
        """The convolutional blocks: (N, channels, …) of any real values, at least of the images' size."""

    def forward(self, latents: Tensor) -> Tensor:
        """Pixels in the dtype of the parameters and in channels_last order."""
        coarse = self._coarse(latents).contiguous(memory_format=torch.channels_last)
        # Under autocast the features come in half precision, whose steps near 1 are coarser than 1/255.
        features = self._blocks(coarse).to(self.first_layer.weight.dtype)
        _, height, width = self.image_shape
        top, left = (features.shape[2] - height) // 2, (features.shape[3] - width) // 2
        return torch.sigmoid(features[:, :, top : top + height, left : left + width])

    @torch.no_grad()
    def initialize(self, random: torch.Generator) -> None:
        """Draw all parameters anew as PyTorch's layers do by default, but from ``random`` alone.

        Args:
            random: on the device of the parameters.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=random)
                if layer.bias is not None:
                    bound = 1 / math.sqrt(layer.weight[0].numel())
                    nn.init.uniform_(layer.bias, -bound, bound, generator=random)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()

    @torch.no_grad()
    def reset_first_layer(self, random: torch.Generator) -> None:
        """Draw the first layer anew, from N(0, 0.02²), with zero bias; the rest stays as learned."""
        nn.init.normal_(self.first_layer.weight, 0.0, 0.02, generator=random)
        if self.first_layer.bias is not None:
            nn.init.zeros_(self.first_layer.bias)


class StandardGenerator(Generator):
    """For small images: a linear layer, then two upsamplings. Latents (N, latent_dim)."""

    UPSAMPLING = 4

    def __init__(self, latent_dim: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(latent_dim, width, image_shape)
        self.l1 = nn.Sequential(nn.Linear(latent_dim, 2 * width * math.prod(self.grid)))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2),
            *_convolution(2 * width, 2 * width),
            nn.Upsample(scale_factor=2),
            *_convolution(2 * width, width),
            nn.Conv2d(width, image_shape[0], 3, padding=1),
        )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(latent_dim,)."""
        return (self.latent_dim,)

    @property
    def first_layer(self) -> nn.Linear | nn.Conv2d:
        """The linear layer."""
        layer = self.l1[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def _coarse(self, latents: Tensor) -> Tensor:
        coarse: Tensor = self.l1(latents).unflatten(1, (2 * self.width, *self.grid))
        return coarse

    def _blocks(self, coarse: Tensor) -> Tensor:
        features: Tensor = self.conv_blocks(coarse)
        return features


class DeepGenerator(Generator):
    """For large images: convolutions all the way from a spatial latent (N, latent_dim, ⌈H/16⌉, ⌈W/16⌉)."""

    UPSAMPLING = 16

    def __init__(self, latent_dim: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(latent_dim, width, image_shape)
        # Published checkpoints carry this layer although no image depends on it; it takes no gradient.
        unused_grid = math.ceil(image_shape[1] / 32) * math.ceil(image_shape[2] / 32)
        self.l1 = nn.Sequential(nn.Linear(latent_dim, width * unused_grid)).requires_grad_(False)
        self.conv_blocks = nn.Sequential(
            *_convolution(latent_dim, 2 * width),
            nn.Upsample(scale_factor=2),
            *_convolution(2 * width, 2 * width),
            nn.Upsample(scale_factor=2),
            *_convolution(2 * width, width),
            nn.Upsample(scale_factor=2),
            *_convolution(width, width),
            nn.Upsample(scale_factor=2),
            *_convolution(width, width),
            nn.Conv2d(width, image_shape[0], 3, padding=1),
        )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(latent_dim, ⌈H/16⌉, ⌈W/16⌉)."""
        return (self.latent_dim, *self.grid)

    @property
    def first_layer(self) -> nn.Linear | nn.Conv2d:
        """The first convolution."""
        layer = self.conv_blocks[0]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def _coarse(self, latents: Tensor) -> Tensor:
        return latents

    def _blocks(self, coarse: Tensor) -> Tensor:
        features: Tensor = self.conv_blocks(coarse)
        return features


class ConvolutionalGenerator(Generator):
    """DFAD's (DCGAN's form): a linear layer to a grid of 1/16, then four transposed convolutions.

    Its output layer ends in a tanh whose range is stretched to [0, 1]; with a normalization of mean and std 0.5 the
    network sees the tanh itself. A third of ``standard``'s weights at 128×128 pixels. Latents (N, latent_dim).
    """

    UPSAMPLING = 16

    def __init__(self, latent_dim: int, width: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(latent_dim, width, image_shape)
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(latent_dim, 8 * width * math.prod(self.grid)))
        layers: list[nn.Module] = [nn.BatchNorm2d(8 * width)]
        inputs = 8 * width
        for outputs in (4 * width, 2 * width, width, width):
            upsampling = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
            layers += [upsampling, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
            inputs = outputs
        self.main = nn.Sequential(*layers, nn.Conv2d(width, image_shape[0], 3, padding=1))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(latent_dim,)."""
        return (self.latent_dim,)

    @property
    def first_layer(self) -> nn.Linear | nn.Conv2d:
        """The linear layer."""
        layer = self.project[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def _coarse(self, latents: Tensor) -> Tensor:
        coarse: Tensor = self.project(latents).unflatten(1, (8 * self.width, *self.grid))
        return coarse

    def _blocks(self, coarse: Tensor) -> Tensor:
        features: Tensor = self.main(coarse)
        return 2 * features  # sigmoid(2x) = (1 + tanh(x)) / 2

    @torch.no_grad()
    def initialize(self, random: torch.Generator) -> None:
        """Weights from N(0, 0.02²), gains of BatchNorm from N(1, 0.02²), zero biases."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, 0.0, 0.02, generator=random)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()
                nn.init.normal_(layer.weight, 1.0, 0.02, generator=random)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.2, inplace=True),
    )


GENERATORS: dict[GeneratorName, type[Generator]] = {
    "standard": StandardGenerator,
    "deep": DeepGenerator,
    "dcgan": ConvolutionalGenerator,
}


def build_generator(
    kind: GeneratorName,
    latent_dim: int,
    width: int,
    image_shape: tuple[int, int, int],
    *,
    random: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Generator:
    """A generator on ``random``'s device whose parameters depend on ``random`` alone."""
    # On the meta device the constructors draw nothing from torch's global random state.
    with torch.device("meta"):
        generator = GENERATORS[kind](latent_dim, width, image_shape)
    generator = generator.to(dtype).to_empty(device=random.device)
    generator.initialize(random)
    return generator.train()
