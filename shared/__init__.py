"""What the generator service and the distiller agree on; imports neither of them."""
