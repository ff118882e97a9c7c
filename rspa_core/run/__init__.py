"""One sampling run on any host: what is planned, decided, counted and reported."""
