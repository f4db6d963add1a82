"""What is built from the checkout, installed outside of it."""
