"""Images on the host: decoding, geometry, augmentation, preprocessing. NumPy arrays and Pillow.

Images are uint8 arrays (H, W, C) with C = 1 (grey) or 3 (RGB). Nothing is changed in place, and
what is random is a pure function of the image and the generator. Sizes are in pixels.
"""
