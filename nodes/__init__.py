"""Everything that knows ComfyUI: the nodes, and the glue that puts the method into a model.

`extension`, `model_folder` and the files that define nodes or socket types need a running ComfyUI;
the other files import without it.
"""
