"""Builds the example workflows of this pack from ComfyUI's official templates.

`graph` edits a workflow file, `nodes` knows the widgets of this pack's nodes, `specs` says what
each workflow changes, `notes` holds the text shown inside the graphs, and `thumbnails` draws the
pictures for the template browser. `tools/build_workflows.py` is the command.
"""
