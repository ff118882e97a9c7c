"""One attention call: everything an artist can pick, checked, then timed side by side."""
