"""Clips of the small trained model: dense and sparse, numbers and pictures."""
