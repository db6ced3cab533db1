"""How an image looks: colours, and what a probe and its settings do to them. Labels stay as is.

What is drawn at random comes as numbers from -1 to 1. Depth is from an image's top to its bottom.
"""

import math

import jax
import jax.numpy as jnp

from usfm.data.geometry import pixel_centres

# Ranges at strength 1.
GAMMA = 1.5
BLUR = 0.2  # what each of a pixel's two neighbours gets, along each axis
GAIN = 3.0  # between an image's top and bottom: too little or too much made up for attenuation
SHADOW = 0.7  # share of the light that a shadow takes
SPECKLE = 0.1  # standard deviation, relative
CONTRAST = 0.2
BRIGHTNESS = 0.1  # of full scale

GREY = 0.25  # which contrast leaves as it is: about the mean of an ultrasound image

# Shadows, of the image's side: where and how wide they begin, and within what their darkness grows.
ACROSS = 0.4  # at most, from the middle
DEPTH = (0.1, 0.6)
SHADOW_HALF_WIDTH = (0.03, 0.1)
ONSET = 0.1
APEX = 0.5  # where the rays that it follows meet, above the image

DRAWS = 10  # of an image


def recolour(
    image: jax.Array, draws: jax.Array, noise: jax.Array, strength: jax.Array
) -> jax.Array:
    """Gamma, blur, gain by depth, a shadow, speckle, contrast and brightness.

    Args:
        image: float32 [S, n, H, W, C] in [0, 255].
        draws: [S, n, DRAWS].
        noise: random uint32 [S, n, H, W].
        strength: [S, 1].

    Returns:
        Images as the given ones. About half of them are blurred, and half have a shadow.
    """
    height, width = image.shape[2:4]
    amounts, places = draws[..., :7] * strength[..., None], draws[..., 7:]
    gamma, blur, gain, shadow, speckle, contrast, brightness = jnp.moveaxis(
        amounts[..., None, None, None], 2, 0
    )
    # In this order: XLA keeps powers, and would compute anything cheaper again for every neighbour.
    image = jnp.power(image / 255, GAMMA**gamma)
    image = _blur(image, BLUR * jnp.maximum(blur, 0))
    _, depth = pixel_centres(height, width)
    image = image * GAIN ** (gain * (depth[:, None, None] - 0.5))
    shade = _shade(places, height, width)[..., None]
    image = image * (1 - SHADOW * jnp.maximum(shadow, 0) * shade)
    image = image * (1 + SPECKLE * jnp.abs(speckle) * _normal(noise)[..., None])
    image = (image - GREY) * (1 + CONTRAST * contrast) + GREY + BRIGHTNESS * brightness
    return jnp.clip(image, 0, 1) * 255


def _blur(image: jax.Array, share: jax.Array) -> jax.Array:
    """Gives a share [S, n, 1, 1, 1] of each pixel to each of its neighbours along both axes.

    Done again at twice the distance for every doubling of the side beyond 128 pixels, so that
    images of any size are blurred about alike: at a share of 0.2 as by a Gaussian of half a percent
    of the side.
    """
    for level in range(max(1, int(math.log2(image.shape[2] / 64)))):
        for axis in (2, 3):
            image = image + share * _second_difference(image, 2**level, axis)
    return image


def _second_difference(image: jax.Array, distance: int, axis: int) -> jax.Array:
    around = [(0, 0)] * image.ndim
    around[axis] = (distance, distance)
    padded = jnp.pad(image, around, mode="edge")
    size = image.shape[axis]
    before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
    after = jax.lax.slice_in_dim(padded, 2 * distance, 2 * distance + size, axis=axis)
    return before + after - 2 * image


def _shade(draws: jax.Array, height: int, width: int) -> jax.Array:
    """Where a shadow lies behind something at a random place, from 0 to 1: [S, n, H, W].

    It follows the rays that come from the probe, and so widens with depth.
    """
    across, depth, half_width = jnp.moveaxis(draws[..., None, None], 2, 0)
    depth, half_width = _between(*DEPTH, depth), _between(*SHADOW_HALF_WIDTH, half_width)
    x, y = pixel_centres(height, width)
    ray = (x - 0.5) / (y[:, None] + APEX)
    aside = jnp.abs(ray - ACROSS * across / (depth + APEX)) * (depth + APEX) / half_width
    return jnp.clip(2 - 2 * aside, 0, 1) * jnp.clip((y[:, None] - depth) / ONSET, 0, 1)


def _between(low: float, high: float, draw: jax.Array) -> jax.Array:
    return (low + high) / 2 + draw * (high - low) / 2


def _normal(noise: jax.Array) -> jax.Array:
    """The sum of four random bytes is close to normal, and much cheaper."""
    total = (noise & 255) + (noise >> 8 & 255) + (noise >> 16 & 255) + (noise >> 24)
    return (total.astype(jnp.float32) - 510) / 147.8
