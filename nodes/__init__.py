"""Everything that knows ComfyUI: the nodes, and the glue that puts the method into a model.

`extension`, `sparse_attention` and `schedule` need a running ComfyUI; the other files import
without it.
"""
