"""Builds the example workflows of this pack from ComfyUI's official templates.

`graph` edits a workflow file, `nodes` knows the nodes to add, `catalogue` says what each workflow
changes and shows, `assemble` puts it together, and `layout` places it (`second_sampling` adds what
only the two workflows have that sample twice). `notes` holds the text shown inside the graphs.
`blueprint` makes the subgraph blueprint, `thumbnails` draws the pictures for the template browser.
`tools/build_workflows.py` is the command.
"""
