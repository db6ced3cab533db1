"""What keeps a file from being read as an image, whatever its format."""

from usfm.errors import UserError

# 8192 x 8192. A few kilobytes can claim any size, and would be given the memory for it.
MAX_PIXELS = 1 << 26


class ImageError(UserError):
    """A file that cannot be used as an image or mask.

    Attributes:
        fault: why, without the file's name.
        remedy: what to do about it.
        path: the file, as it was asked for; "" until it is known.
    """

    def __init__(self, fault: str, remedy: str = "copy it again, or save it as an 8-bit PNG"):
        super().__init__(fault, remedy)
        self.fault, self.remedy, self.path = fault, remedy, ""

    def __str__(self) -> str:
        return f"{self.path} {self.fault}; {self.remedy}".lstrip()


def check_size(width: int, height: int) -> None:
    """Raises ImageError where an image has no pixels or too many to be one."""
    if min(width, height) < 1:
        raise ImageError(f"has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"is {width} x {height} pixels, above the limit of {MAX_PIXELS}")


def frame_index(frame: int | None, count: int) -> int:
    """The 0-based position of a frame among those of a file.

    Args:
        frame: its number, from 1, or None where none is named.
        count: how many the file has.

    Raises:
        ImageError: there is no such frame, or none is named and there are several.
    """
    if frame is None and count == 1:
        return 0
    if frame is None:
        remedy = f"name one by its number behind the path, #1 to #{count}"
        raise ImageError(f"holds {count} frames", remedy)
    if not 1 <= frame <= count:
        raise ImageError(f"has no frame {frame}", f"its frames are #1 to #{count}")
    return frame - 1
