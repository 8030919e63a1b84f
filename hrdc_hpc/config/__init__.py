"""What a run is: frozen dataclasses, YAML with overrides, errors that name file, line and key. Torch-free."""
