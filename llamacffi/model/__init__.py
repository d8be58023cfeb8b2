"""Models: loading, checking, describing, making and saving them."""
