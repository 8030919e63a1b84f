"""One method a file: heads, training loss, prediction, the sample streams it wants."""
