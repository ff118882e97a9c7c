"""Builds the example workflows of this pack from ComfyUI's official templates.

`graph` edits a workflow file, `nodes` knows the nodes to add, `catalogue` says in the terms of
`specs` what each workflow changes (`comparison` and `tuning` add what only those two have),
`assemble` puts it together, and `notes` holds the text shown inside the graphs. `blueprint` makes
the subgraph blueprint, `thumbnails` draws the pictures for the template browser from `renders`.
`tools/build_workflows.py` is the command.
"""
