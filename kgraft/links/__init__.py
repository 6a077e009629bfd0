"""How weights come from elsewhere and go there: K peers of one process, PyTorch's files."""
