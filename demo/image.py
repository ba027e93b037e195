"""An image to ask about: an ellipse with a bright spot, faintly like an axial scan."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def make_image(seed: int = 0, size: int = 224) -> Image.Image:
    """A grey image [size, size], the same for the same seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(image)
    draw.ellipse([size * 0.14, size * 0.08, size * 0.86, size * 0.92], fill=200)
    draw.ellipse([size * 0.18, size * 0.12, size * 0.82, size * 0.88], fill=90)
    for side in (0.40, 0.56):
        draw.ellipse([size * side, size * 0.38, size * (side + 0.06), size * 0.62], fill=30)
    x, y = rng.uniform(0.28, 0.70, 2) * size
    draw.ellipse([x - 9, y - 9, x + 9, y + 9], fill=235)
    noise = rng.normal(0, 6, (size, size))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), np.float32)
    return Image.fromarray(np.clip(blurred + noise, 0, 255).astype(np.uint8))
