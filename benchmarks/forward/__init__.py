"""Whole forwards of ComfyUI's own model classes."""
