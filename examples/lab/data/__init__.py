"""Data that every example can make without a download: seeded, split, from real sources inside installed packages.

`digits` (scikit-learn's handwritten digits), `photographs` (photographs and textures of scikit-image), `scenes` (digits
pasted on photographs: boxes, masks, labels), `clips` (moving digits), `brain` (slices of nilearn's MNI152 template with
planted tumours). The three splits share no digit, no pixel of a photograph and no slice of the brain.
"""

from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
