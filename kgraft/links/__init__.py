"""How weights come from elsewhere and go there: PyTorch's files."""
