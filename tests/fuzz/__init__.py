"""What comes from outside, read with inputs that nobody would write: by hypothesis in the suite, by atheris by hand."""
