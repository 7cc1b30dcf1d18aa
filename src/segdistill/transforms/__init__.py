"""Weak, strong and evaluation presets: batched, on the device, image and mask together."""
