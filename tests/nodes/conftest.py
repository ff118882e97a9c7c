"""The node classes load without ComfyUI, through a stand-in for its API."""

from . import comfy_api_stub

comfy_api_stub.install()
