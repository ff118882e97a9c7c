"""How close every method is to full attention in fp32, next to its milliseconds."""
