"""Pictures that the nodes draw."""
