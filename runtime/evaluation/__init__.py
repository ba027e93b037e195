"""Many questions answered into a file that survives any stop, and what the answers add up to."""
