"""A small video diffusion model of Wan 2.1's architecture, and the data it is trained on.

`footage` cuts clips from real videos and `autoencoder` codes them with the geometry of Wan's VAE.
The model shows what sparse attention does to a trained video model without a download.
"""
