"""From good images to a calibrated model."""
