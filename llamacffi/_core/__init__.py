"""What all rooms stand on: ownership, locks, shutdown, callbacks, values, text and files."""
