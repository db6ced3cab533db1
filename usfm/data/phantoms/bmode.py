"""The physics of a phantom: from what the tissue scatters to a displayed B-mode image.

Everything happens on the grid of the probe's beams, [samples, beams], as in a scanner: complex
scatterers are smeared by the point-spread function, attenuated on the way down and back, amplified
with depth, log-compressed, and only then scan-converted to pixels. Lengths are millimetres: x to
the right from the middle of the probe, z downwards from its face.

Model: Szabo, Diagnostic Ultrasound Imaging: Inside Out, 2nd ed. (2014), chapters 8 to 10; speckle
statistics: Wagner et al., IEEE Trans. Sonics Ultrason. 30 (1983), 156-163.
"""

import dataclasses
import math

import cv2
import numpy as np
import scipy.fft

SOUND_SPEED = 1.54  # mm/µs, soft tissue


@dataclasses.dataclass(frozen=True)
class Probe:
    """A transducer and the settings of its scanner.

    Attributes:
        height: of the displayed image, pixels.
        width: of the displayed image, pixels.
        depth: deepest point shown, mm from the face.
        frequency: centre frequency, MHz.
        half_angle: half the opening of the fan, radians; 0 for a linear array, which then spans
            the whole width of the image.
        radius: of the curved face of a fan, mm; small for a phased array.
        focus: depth at which the beam is narrowest, as a part of `depth`.
        cycles: length of the pulse.
        f_number: focal distance / aperture; the beam is f_number wavelengths wide at the focus.
        beams: number of beams.
        gain: of the display, dB; at 0, tissue of 0 dB is mid-grey.
        dynamic_range: from black to white, dB.
        tgc: the attenuation that the time gain compensation makes up for, dB/(cm MHz), one way.
        noise: of the electronics before amplification, dB.
    """

    height: int
    width: int
    depth: float
    frequency: float
    half_angle: float = 0.0
    radius: float = 0.0
    focus: float = 0.5
    cycles: float = 2.0
    f_number: float = 2.5
    beams: int = 128
    gain: float = 0.0
    dynamic_range: float = 60.0
    tgc: float = 0.5
    noise: float = -52.0

    @property
    def linear(self) -> bool:
        """The beams are parallel."""
        return self.half_angle == 0

    @property
    def wavelength(self) -> float:
        """In mm."""
        return SOUND_SPEED / self.frequency

    @property
    def pulse(self) -> float:
        """Length of the pulse's echo, full width at half maximum, mm: the axial resolution."""
        return self.cycles * self.wavelength / 2

    @property
    def samples(self) -> int:
        """Samples a beam: two to the axial resolution."""
        return math.ceil(2 * self.depth / self.pulse)

    @property
    def top(self) -> float:
        """Depth z of the image's upper edge: above 0, for a curved face bends back at its ends."""
        return 0.0 if self.linear else self.radius * (math.cos(self.half_angle) - 1)

    @property
    def pixel(self) -> float:
        """Side of a displayed pixel, mm."""
        rows = (self.depth - self.top) / self.height
        if self.linear:
            return rows
        return max(rows, 2 * (self.radius + self.depth) * math.sin(self.half_angle) / self.width)


def pixel_grid(probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixel centres lie: x and z in mm, each float32 [height, width]."""
    columns = (np.arange(probe.width, dtype=np.float32) + 0.5 - probe.width / 2) * probe.pixel
    rows = (np.arange(probe.height, dtype=np.float32) + 0.5) * probe.pixel + probe.top
    x, z = np.meshgrid(columns, rows)
    return x, z


def to_pixels(probe: Probe, x: float, z: float) -> tuple[float, float]:
    """Column and row of a point in mm. Pixel i covers [i, i + 1), so its centre is i + 0.5."""
    return x / probe.pixel + probe.width / 2, (z - probe.top) / probe.pixel


def beam_grid(probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """Where the samples of the beams lie: x and z in mm, each float32 [samples, beams]."""
    depth = (np.arange(probe.samples, dtype=np.float32)[:, None] + 0.5) * (
        probe.depth / probe.samples
    )
    beam = (np.arange(probe.beams, dtype=np.float32)[None] + 0.5) / probe.beams * 2 - 1
    if probe.linear:
        x = beam * (probe.width / 2 * probe.pixel) + 0 * depth
        return x, depth + 0 * beam
    angle = beam * probe.half_angle
    distance = depth + probe.radius
    return distance * np.sin(angle), distance * np.cos(angle) - probe.radius


def beam_coordinates(probe: Probe, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fractional (sample, beam) of points in mm, the inverse of `beam_grid`."""
    if probe.linear:
        depth, beam = z, x / (probe.width / 2 * probe.pixel)
    else:
        depth = np.hypot(x, z + probe.radius) - probe.radius
        beam = np.arctan2(x, z + probe.radius) / probe.half_angle
    sample = depth * (probe.samples / probe.depth) - 0.5
    return sample, (beam + 1) / 2 * probe.beams - 0.5


def in_view(probe: Probe, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Which points in mm the probe's beams reach; bool."""
    sample, beam = beam_coordinates(probe, x, z)
    inside = (sample >= -0.5) & (sample <= probe.samples - 0.5)
    return inside & (beam >= -0.5) & (beam <= probe.beams - 0.5)


def beam_width(probe: Probe) -> np.ndarray:
    """Full width at half maximum of the beam in beams, one a sample; float32 [samples]."""
    depth = (np.arange(probe.samples, dtype=np.float32) + 0.5) * (probe.depth / probe.samples)
    focus = probe.focus * probe.depth
    waist = probe.f_number * probe.wavelength
    # Away from its focus the sent beam opens as its aperture converged, 1 / f_number; focusing anew
    # at every depth on receive leaves about a quarter of that.
    width = np.hypot(waist, (depth - focus) / probe.f_number / 4)
    if probe.linear:
        spacing = probe.width * probe.pixel / probe.beams
    else:
        spacing = (probe.radius + depth) * (2 * probe.half_angle / probe.beams)
    # Not narrower than the grid can hold, nor wider than an aperture is.
    return np.clip(width / spacing, 1.0, probe.beams / 16)


def smear(scatterers: np.ndarray, probe: Probe) -> np.ndarray:
    """The demodulated echoes of scatterers: convolution with the point-spread function.

    A Gaussian pulse along the beam; across it a Gaussian whose width grows away from the focus.
    Both have unit energy, so white scatterers of unit power give speckle of unit power.

    Args:
        scatterers: complex64 [samples, beams].
        probe: gives the pulse and the beam's width.

    Returns:
        complex64 [samples, beams].
    """
    sigma = 2 / 2.355  # the pulse is two samples long at half maximum
    pulse = cv2.getGaussianKernel(9, sigma, cv2.CV_32F)
    pulse /= np.linalg.norm(pulse)
    parts = scatterers.view(np.float32).reshape(*scatterers.shape, 2)
    along = cv2.sepFilter2D(
        parts, -1, np.ones(1, np.float32), pulse, borderType=cv2.BORDER_CONSTANT
    )
    # The beam's width changes from row to row: a product row by row in the lateral spectrum. The
    # padding keeps one side of the picture from leaking into the other.
    padded = scipy.fft.next_fast_len(probe.beams + probe.beams // 8)
    frequency = scipy.fft.fftfreq(padded).astype(np.float32) * np.float32(2 * np.pi)
    sigmas = beam_width(probe)[:, None] / 2.355
    across = np.exp(-0.5 * (sigmas * frequency) ** 2)
    across /= np.sqrt(np.mean(across**2, axis=1, keepdims=True))
    spectrum = scipy.fft.fft(along.view(np.complex64)[..., 0], padded, axis=1)
    return scipy.fft.ifft(spectrum * across, axis=1)[:, : probe.beams]


def white(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Complex Gaussian noise of unit power, complex64: very many scatterers a resolution cell."""
    parts = rng.standard_normal((*shape, 2), np.float32) * np.float32(math.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


def envelope(
    probe: Probe,
    echogenicity: np.ndarray,
    specular: np.ndarray,
    attenuation: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The amplified envelope that the scanner detects, before log compression.

    Args:
        probe: the transducer.
        echogenicity: power of the scatterers, dB, [samples, beams].
        specular: amplitude of smooth interfaces, which add up in phase, [samples, beams].
        attenuation: dB/(cm MHz), one way, [samples, beams].
        rng: of the scatterers and of the electronic noise.

    Returns:
        float32 [samples, beams], 1 in the root mean square for tissue of 0 dB.
    """
    shape = echogenicity.shape
    echoes = smear(white(rng, shape) * decibels(echogenicity) + specular, probe)
    step = probe.depth / probe.samples / 10  # cm
    loss = np.cumsum(attenuation, axis=0) * (2 * probe.frequency * step)
    # Each beam is sent and heard by a whole aperture, so that the edges of a shadow are soft.
    loss = cv2.GaussianBlur(loss, (0, 0), sigmaX=1.5, sigmaY=0.5, borderType=cv2.BORDER_REPLICATE)
    compensation = np.arange(1, shape[0] + 1, dtype=np.float32)[:, None] * (
        2 * probe.frequency * step * probe.tgc
    )
    # The amplifier has a limit, so that the noise in the deep does not grow without one.
    compensation = np.minimum(compensation, 40.0)
    noise = white(rng, shape) * np.float32(10 ** (probe.noise / 20))
    return np.abs(echoes * decibels(-loss) + noise) * decibels(compensation)


def decibels(level: np.ndarray) -> np.ndarray:
    """The amplitude ratio of a level in dB."""
    return np.exp(level * np.float32(math.log(10) / 20))


def compress(probe: Probe, amplitude: np.ndarray) -> np.ndarray:
    """Log compression: the dynamic range round the gain becomes 0..1; float32."""
    level = 20 * np.log10(np.maximum(amplitude, 1e-6)) + probe.gain
    return np.clip(level / probe.dynamic_range + 0.5, 0, 1)


def scan_convert(probe: Probe, brightness: np.ndarray) -> np.ndarray:
    """From beams to pixels, black where no beam reaches; float [samples, beams] -> uint8 [H, W]."""
    x, z = pixel_grid(probe)
    sample, beam = beam_coordinates(probe, x, z)
    image = cv2.remap(brightness, beam, sample, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    image[~in_view(probe, x, z)] = 0
    return np.rint(image * 255).astype(np.uint8)
