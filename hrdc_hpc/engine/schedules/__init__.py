"""One learning-rate schedule a file, each a pure function of the step."""
