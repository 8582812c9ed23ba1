"""The circuit as engines see it: gates lowered to matrices, light cones, connected components."""
