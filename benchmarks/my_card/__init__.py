"""What an artist's own graphics card gains: one attention call, a file to post, a table by card."""
