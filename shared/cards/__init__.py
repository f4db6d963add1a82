"""Cards that describe a dataset and a student to whoever finds them."""
