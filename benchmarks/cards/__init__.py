"""What calls and models cost on graphics cards, from compiled machine code and without a GPU."""
