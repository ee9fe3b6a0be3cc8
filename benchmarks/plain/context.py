"""Layers written plainly."""

PLAIN: dict = {}
